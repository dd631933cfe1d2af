//! An index of what exists only because of the client library's defects (lapin 4.12.3). What is mended there can be
//! removed here.
//!
//! - [`super::filter`]: one property, header name or routing key that is not UTF-8, an unknown field type, or
//!   property flags that go on make its parser fail, and it then gives up the whole connection; field tables are
//!   parsed by recursion, so that some thousand levels overflow the stack of its thread and abort the process;
//!   and a content header that is longer than the connection's frames counts as a broken protocol.
//!   (<https://docs.rs/lapin/4.12.3/src/lapin/io_loop.rs.html>, `parse`; the parsers:
//!   <https://docs.rs/amq-protocol-types/10.6.3/src/amq_protocol_types/parsing.rs.html>)
//! - The handshake's deadline in [`super::filter::stream`]: its thread waits without end for a broker that accepts
//!   a connection and says nothing, also when nobody waits for the connection any more. (The same file, `start`.)
//! - [`super::dial`] connects by address and host name of its own: its URL parser makes `localhost` of an IPv6
//!   address. (<https://docs.rs/amq-protocol-uri/10.6.3/src/amq_protocol_uri/lib.rs.html>, `url.domain()`)
//! - `frame_max` in [`super::url`]: two limits of "none" make it allocate 32 times 4 GiB. (`io_loop.rs`,
//!   `FRAMES_STORAGE`)
//! - [`super::returns`], and the header `x-warren-sequence`: it hands a returned message to whichever confirm comes next.
//!   (<https://docs.rs/lapin/4.12.3/src/lapin/returned_messages.rs.html>)
//! - One task for each publishing channel ([`super::publisher`]): publishes of several tasks on one channel get
//!   each other's confirms.
//! - `unfit` publishes in [`super::convert`]: a header that does not fit into a frame ends the connection instead of
//!   the publish.
