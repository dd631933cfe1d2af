//! The users of a channel, or only their number when they are many: comparing and merging. Pure.

use std::collections::BTreeSet;

use crate::ids::UserId;
use crate::protocol::presence::{Change, Event, Roster, RosterUpdate};
use crate::router::ask::USERS_LISTED_MAX;

/// A channel that was only counted is listed again when it has no more users than this: one with about
/// [`USERS_LISTED_MAX`] does not go to and fro.
pub const LISTED_AGAIN_MAX: usize = USERS_LISTED_MAX * 9 / 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    Users(BTreeSet<UserId>),
    Count(u64),
}

impl Default for Members {
    fn default() -> Self {
        Members::Users(BTreeSet::new())
    }
}

/// What makes one set of users of another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    pub joined: Vec<UserId>,
    pub left: Vec<UserId>,
}

impl Members {
    /// As [`Hub::users_in`](crate::hub::Hub::users_in) tells it: the users only if they are few enough.
    pub fn of_node((users, count): (Vec<UserId>, usize)) -> Self {
        match users.len() == count {
            true => Members::Users(users.into_iter().collect()),
            false => Members::Count(count as u64),
        }
    }

    pub fn count(&self) -> u64 {
        match self {
            Members::Users(users) => users.len() as u64,
            Members::Count(count) => *count,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many users may be listed in what follows this.
    pub fn listed_max(&self) -> usize {
        match self {
            Members::Users(_) => USERS_LISTED_MAX,
            Members::Count(_) => LISTED_AGAIN_MAX,
        }
    }

    /// The users of several nodes, each once as far as they are listed. More than `listed_max` are only counted.
    pub fn merge<'a>(parts: impl Iterator<Item = &'a Members>, listed_max: usize) -> Self {
        let mut users = BTreeSet::new();
        let mut counted = None;
        for part in parts {
            match part {
                Members::Users(of) => users.extend(of.iter().cloned()),
                Members::Count(count) => *counted.get_or_insert(0) += count,
            }
        }
        match counted {
            None if users.len() <= listed_max => Members::Users(users),
            counted => Members::Count(users.len() as u64 + counted.unwrap_or(0)),
        }
    }

    /// Applies what another node says has changed. `false`: that does not fit to a number.
    pub fn apply(&mut self, difference: Difference) -> bool {
        let Members::Users(users) = self else { return false };
        for user in &difference.left {
            users.remove(user);
        }
        users.extend(difference.joined);
        users.len() <= USERS_LISTED_MAX
    }

    pub fn roster(&self) -> Roster {
        match self {
            Members::Users(users) => {
                Roster { users: Some(users.iter().cloned().collect()), count: users.len() as u64 }
            }
            Members::Count(count) => Roster { users: None, count: *count },
        }
    }
}

pub fn difference(before: &BTreeSet<UserId>, after: &BTreeSet<UserId>) -> Difference {
    Difference {
        joined: after.difference(before).cloned().collect(),
        left: before.difference(after).cloned().collect(),
    }
}

/// What listeners who know `before` are told. `None`: nothing has changed.
pub fn update(before: &Members, after: &Members) -> Option<RosterUpdate> {
    if before == after {
        return None;
    }
    let mut changes = Vec::new();
    let mut is_anew = false;
    match (before, after) {
        (Members::Users(before), Members::Users(after)) => {
            let Difference { joined, left } = difference(before, after);
            let mut count = before.len() as u64;
            for user in left {
                count -= 1;
                changes.push(Change { event: Event::Leave, user: Some(user), count });
            }
            for user in joined {
                count += 1;
                changes.push(Change { event: Event::Join, user: Some(user), count });
            }
        }
        (Members::Count(_), Members::Users(_)) => is_anew = true,
        (_, Members::Count(count)) => {
            let event = if *count < before.count() { Event::Leave } else { Event::Join };
            changes.push(Change { event, user: None, count: *count });
        }
    }
    Some(RosterUpdate { changes, is_anew, roster: after.roster() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(names: &[&str]) -> Members {
        Members::Users(names.iter().map(|name| UserId::new(name).unwrap()).collect())
    }

    #[test]
    fn users_of_several_nodes_count_once_while_they_are_listed() {
        let parts = [users(&["a", "b"]), users(&["b", "c"])];
        assert_eq!(Members::merge(parts.iter(), 3), users(&["a", "b", "c"]));
        assert_eq!(Members::merge(parts.iter(), 2), Members::Count(3));
        let parts = [users(&["a", "b"]), Members::Count(5)];
        assert_eq!(Members::merge(parts.iter(), 100), Members::Count(7));
        assert_eq!(Members::merge([].iter(), 0), users(&[]));
    }

    #[test]
    fn updates_tell_each_change_with_the_count_after_it() {
        let told = update(&users(&["a", "b"]), &users(&["b", "c", "d"])).unwrap();
        let told: Vec<_> =
            told.changes.iter().map(|of| (of.event, of.user.as_ref().unwrap().as_str(), of.count)).collect();
        assert_eq!(told, [(Event::Leave, "a", 1), (Event::Join, "c", 2), (Event::Join, "d", 3)]);
        assert_eq!(update(&users(&["a"]), &users(&["a"])), None);
        let counts = |from, to| update(&from, &to).map(|of| (of.changes, of.is_anew));
        let change = |event, count| vec![Change { event, user: None, count }];
        assert_eq!(counts(users(&["a"]), Members::Count(9)), Some((change(Event::Join, 9), false)));
        assert_eq!(counts(Members::Count(9), Members::Count(7)), Some((change(Event::Leave, 7), false)));
        assert_eq!(counts(Members::Count(9), users(&["a"])), Some((vec![], true)));
    }
}
