//! The topology at the broker, the checked-in definitions file, and what its users may and may not do.
