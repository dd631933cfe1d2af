//! Lost, blocked, half-open and refused connections: the bus says so at once and comes back by itself.
