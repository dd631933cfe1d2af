//! Mail of users who are away: who has it, and how much.

pub mod index;
