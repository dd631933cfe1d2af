//! What the application has decided lately, and who waits for a decision. Pure: a table with bounds, and the clock as argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Question, Then, Verdict};
use crate::ids::UserId;

/// Decisions that are kept. Overflow policy: further ones count for those who wait, and are not kept.
const KEPT_MAX: usize = 1 << 16;
/// The same of one user.
const KEPT_OF_USER_MAX: usize = 256;
/// Actions that wait. Overflow policy: `overloaded`.
const WAITING_MAX: usize = 8_192;
/// The same of one user.
const WAITING_OF_USER_MAX: usize = 256;

/// What came of a question.
pub(super) enum Asked {
    /// It was decided already: to be carried out at once.
    Known(Then, Verdict),
    /// It will be carried out when it is decided.
    Waits,
    /// The same, and nobody has put the question yet.
    First,
    /// There is no room to wait.
    Full(Then),
}

enum State {
    /// The application is asked.
    Open,
    /// It has decided, and those who wait are carried out one after the other; whoever comes meanwhile goes behind them.
    Closing(Verdict),
    Kept(Verdict),
}

struct Entry {
    state: State,
    waiting: VecDeque<Then>,
}

#[derive(Default)]
pub(super) struct Decisions {
    entries: HashMap<Question, Entry>,
    /// What is kept, by the end of its time.
    order: VecDeque<(Instant, Question)>,
    kept_of_user: HashMap<UserId, usize>,
    waiting: usize,
    waiting_of_user: HashMap<UserId, usize>,
}

fn count_down(counts: &mut HashMap<UserId, usize>, user: &UserId) {
    if let Some(count) = counts.get_mut(user) {
        *count -= 1;
        if *count == 0 {
            counts.remove(user);
        }
    }
}

impl Decisions {
    pub(super) fn ask(&mut self, question: &Question, then: Then, now: Instant) -> Asked {
        self.forget_overdue(now);
        if let Some(Entry { state: State::Kept(verdict), .. }) = self.entries.get(question) {
            return Asked::Known(then, verdict.clone());
        }
        let of_user = self.waiting_of_user.get(&question.user).copied().unwrap_or_default();
        if self.waiting >= WAITING_MAX || of_user >= WAITING_OF_USER_MAX {
            return Asked::Full(then);
        }
        self.waiting += 1;
        *self.waiting_of_user.entry(question.user.clone()).or_default() += 1;
        let is_first = !self.entries.contains_key(question);
        let entry = self.entries.entry(question.clone());
        let entry = entry.or_insert_with(|| Entry { state: State::Open, waiting: VecDeque::new() });
        entry.waiting.push_back(then);
        if is_first {
            Asked::First
        } else {
            Asked::Waits
        }
    }

    /// The application has decided. Whoever reports it then carries out [`Decisions::next`] until there is none.
    pub(super) fn decided(&mut self, question: &Question, verdict: Verdict) {
        if let Some(entry) = self.entries.get_mut(question) {
            entry.state = State::Closing(verdict);
        }
    }

    /// The next one that waits. When there is none the decision is kept for `ttl`, unless it is for this once.
    pub(super) fn next(
        &mut self,
        question: &Question,
        ttl: Duration,
        now: Instant,
    ) -> Option<(Then, Verdict)> {
        let entry = self.entries.get_mut(question)?;
        let State::Closing(verdict) = &entry.state else { return None };
        let verdict = verdict.clone();
        if let Some(then) = entry.waiting.pop_front() {
            self.waiting -= 1;
            count_down(&mut self.waiting_of_user, &question.user);
            return Some((then, verdict));
        }
        let kept = self.kept_of_user.get(&question.user).copied().unwrap_or_default();
        let has_room = self.order.len() < KEPT_MAX && kept < KEPT_OF_USER_MAX;
        // What failed is asked again.
        if ttl.is_zero() || !has_room || verdict.as_ref().is_err_and(|error| error.code.retry()) {
            self.entries.remove(question);
            return None;
        }
        entry.state = State::Kept(verdict);
        entry.waiting = VecDeque::new();
        self.order.push_back((now + ttl, question.clone()));
        *self.kept_of_user.entry(question.user.clone()).or_default() += 1;
        None
    }

    fn forget_overdue(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, question)) = self.order.pop_front() else { return };
            self.entries.remove(&question);
            count_down(&mut self.kept_of_user, &question.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hook;
    use super::*;
    use crate::error::{Code, Error};
    use std::sync::mpsc;

    const TTL: Duration = Duration::from_secs(10);

    fn question(user: &str, about: &str) -> Question {
        Question { hook: Hook::Publish, user: UserId::new(user).unwrap(), about: about.into() }
    }

    fn nothing() -> Then {
        Box::new(|_| ())
    }

    #[test]
    fn those_who_wait_go_in_order_and_whoever_comes_meanwhile_goes_last() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        let about = question("a", "user.b");
        let (tell, told) = mpsc::channel();
        let then = |number: u32| -> Then {
            let tell = tell.clone();
            Box::new(move |verdict| tell.send((number, verdict.is_ok())).unwrap())
        };
        assert!(matches!(decisions.ask(&about, then(1), now), Asked::First));
        assert!(matches!(decisions.ask(&about, then(2), now), Asked::Waits));
        assert!(decisions.next(&about, TTL, now).is_none(), "not decided");
        decisions.decided(&about, Ok(()));
        let (first, verdict) = decisions.next(&about, TTL, now).unwrap();
        assert!(matches!(decisions.ask(&about, then(3), now), Asked::Waits));
        first(verdict);
        while let Some((then, verdict)) = decisions.next(&about, TTL, now) {
            then(verdict);
        }
        assert!(matches!(decisions.ask(&about, nothing(), now), Asked::Known(_, Ok(()))));
        assert!(matches!(decisions.ask(&question("a", "user.c"), nothing(), now), Asked::First));
        assert!(matches!(decisions.ask(&about, nothing(), now + TTL), Asked::First), "its time is over");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn a_refusal_is_kept_and_a_failure_is_not() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        for (code, ttl, is_kept) in [
            (Code::Forbidden, TTL, true),
            (Code::Unavailable, TTL, false),
            (Code::Forbidden, Duration::ZERO, false),
        ] {
            let about = question("a", &format!("{code:?}{ttl:?}"));
            assert!(matches!(decisions.ask(&about, nothing(), now), Asked::First));
            decisions.decided(&about, Err(Error::new(code, "no")));
            assert!(decisions.next(&about, ttl, now).is_some_and(|(_, verdict)| verdict.is_err()));
            assert!(decisions.next(&about, ttl, now).is_none());
            let again = decisions.ask(&about, nothing(), now);
            assert_eq!(matches!(again, Asked::Known(_, Err(_))), is_kept, "{code:?}");
        }
    }

    #[test]
    fn a_user_has_a_share_of_the_room_and_leaves_none_behind() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        for at in 0..WAITING_OF_USER_MAX {
            let asked = decisions.ask(&question("a", &format!("user.{at}")), nothing(), now);
            assert!(matches!(asked, Asked::First));
        }
        assert!(matches!(decisions.ask(&question("a", "more"), nothing(), now), Asked::Full(_)));
        assert!(matches!(decisions.ask(&question("b", "more"), nothing(), now), Asked::First));
        for (user, at) in
            (0..WAITING_OF_USER_MAX).map(|at| ("a", format!("user.{at}"))).chain([("b", "more".into())])
        {
            let about = question(user, &at);
            decisions.decided(&about, Ok(()));
            while decisions.next(&about, TTL, now).is_some() {}
        }
        assert_eq!((decisions.waiting, decisions.waiting_of_user.len()), (0, 0));
        // As many as may be kept of one user; one more counts once.
        let about = question("a", "more");
        assert!(matches!(decisions.ask(&about, nothing(), now), Asked::First));
        decisions.decided(&about, Ok(()));
        while decisions.next(&about, TTL, now).is_some() {}
        assert!(!decisions.entries.contains_key(&about));
        decisions.forget_overdue(now + TTL);
        assert!(
            decisions.entries.is_empty() && decisions.kept_of_user.is_empty() && decisions.order.is_empty()
        );
    }
}
