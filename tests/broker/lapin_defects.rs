//! Known defects of the client library under load: our bus must not show any of them.
