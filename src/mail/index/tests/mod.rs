//! Tests of the mail index.
