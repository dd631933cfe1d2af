//! What nodes say to each other: message envelopes, receipts, probes, questions and answers.
