//! The paths of all targets of this node, each behind one lock, and the execution of what they want done.
//!
//! Lock order, outermost first: a shard of `by_target` or `slots` → the lock of one cell → `timers`, and whatever a
//! [`World`] looks up (hub, directory, mail index, taken ids; these call nothing back). No effect is executed under a lock. The
//! effects of one path are executed one after the other, by the thread that finds them and while nobody else does: so
//! messages leave in the order in which the path let them go.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use slab::Slab;

use super::path::{Effect, Event, Path, World};
use crate::delivery::envelope::Tag;
use crate::delivery::seen::SeenKey;
use crate::protocol::target::Target;

const SHARDS: usize = 64;
/// A path that is looked at anyway within so long is not scheduled anew: shorter than anything it waits for.
const SCHEDULE_GRAIN: Duration = Duration::from_millis(100);
/// A tag is the slot of its path and a number; so a receipt finds the path without a table of its own.
const NUMBER_BITS: u32 = 32;

/// Carries out one effect. `Err`: the workers have no room for a message of the path now.
pub trait Execute {
    fn execute(&self, cell: &Arc<Cell>, effect: Effect) -> Result<(), SeenKey>;
}

/// One path with its lock.
pub struct Cell {
    slot: usize,
    state: Mutex<State>,
}

struct State {
    path: Path,
    effects: Vec<Effect>,
    /// A thread executes effects, and goes on with those that are added.
    executing: bool,
    /// When the timers look at it.
    scheduled: Option<Instant>,
    /// It is no longer in the table.
    forgotten: bool,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question to the path.
    pub fn ask<T>(&self, question: impl FnOnce(&Path) -> T) -> T {
        question(&self.lock().path)
    }
}

/// A path whose effects are still to be executed.
#[must_use]
pub struct Stepped(Option<Arc<Cell>>);

type Shard = Mutex<HashMap<Target, Arc<Cell>>>;

pub struct PathTable {
    by_target: Box<[Shard]>,
    hasher: RandomState,
    slots: RwLock<Slab<Arc<Cell>>>,
    timers: Mutex<BTreeMap<(Instant, usize), ()>>,
    next_number: AtomicU64,
}

impl PathTable {
    pub fn new() -> Self {
        Self {
            by_target: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            slots: RwLock::default(),
            timers: Mutex::default(),
            // Anywhere: numbers of a former process of this node must not be given again soon.
            next_number: AtomicU64::new(rand::random()),
        }
    }

    fn shard(&self, target: &Target) -> MutexGuard<'_, HashMap<Target, Arc<Cell>>> {
        let at = self.hasher.hash_one(target) as usize % SHARDS;
        self.by_target[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timers(&self) -> MutexGuard<'_, BTreeMap<(Instant, usize), ()>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, target: &Target) -> Option<Arc<Cell>> {
        self.shard(target).get(target).cloned()
    }

    pub fn find_or_make(&self, target: &Target, now: Instant) -> Arc<Cell> {
        match self.shard(target).entry(target.clone()) {
            Entry::Occupied(there) => there.get().clone(),
            Entry::Vacant(room) => {
                let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
                let slot = slots.vacant_key();
                let state = State {
                    path: Path::new(target.clone(), now),
                    effects: Vec::new(),
                    executing: false,
                    scheduled: None,
                    forgotten: false,
                };
                let cell = Arc::new(Cell { slot, state: Mutex::new(state) });
                slots.insert(cell.clone());
                room.insert(cell).clone()
            }
        }
    }

    /// A new tag for a message of this path.
    pub fn new_tag(&self, cell: &Cell) -> Tag {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed) & (u64::from(u32::MAX));
        Tag(((cell.slot as u64) << NUMBER_BITS) | number)
    }

    /// The path of a tag, unless it has been forgotten: then another path may be there, which does not know the tag.
    pub fn of_tag(&self, tag: Tag) -> Option<Arc<Cell>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get((tag.0 >> NUMBER_BITS) as usize).cloned()
    }

    /// Everything that is there now.
    pub fn all(&self) -> Vec<Arc<Cell>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|(_, cell)| cell.clone()).collect()
    }

    /// Steps the path of a target, which is made if there is none.
    pub fn step(&self, target: &Target, event: Event, now: Instant, router: &(impl World + Execute)) {
        let mut event = event;
        loop {
            let cell = self.find_or_make(target, now);
            match self.step_cell(&cell, event, now, router) {
                Ok(()) => return,
                Err(back) => event = back,
            }
        }
    }

    /// Steps the path of a target if there is one.
    pub fn step_if_there(
        &self,
        target: &Target,
        event: Event,
        now: Instant,
        router: &(impl World + Execute),
    ) {
        if let Some(cell) = self.find(target) {
            // One that was just forgotten had nothing in it.
            let _ = self.step_cell(&cell, event, now, router);
        }
    }

    /// Steps the path of a target without executing anything: for a caller that holds a lock. What it returns is to be
    /// handed to [`PathTable::execute_of`] when the lock is released.
    pub fn step_only(&self, target: &Target, event: Event, now: Instant, world: &impl World) -> Stepped {
        let mut event = event;
        loop {
            let cell = self.find_or_make(target, now);
            match self.step_and_claim(&cell, event, now, world) {
                Ok(claimed) => return Stepped(claimed.then_some(cell)),
                Err(back) => event = back,
            }
        }
    }

    pub fn execute_of(&self, stepped: Stepped, router: &(impl World + Execute)) {
        if let Some(cell) = stepped.0 {
            self.execute(&cell, router);
        }
    }

    /// `Err` gives the event back: the path has been forgotten meanwhile.
    #[allow(
        clippy::result_large_err,
        reason = "a forgotten path is rare; its event is moved to the next one"
    )]
    pub fn step_cell(
        &self,
        cell: &Arc<Cell>,
        event: Event,
        now: Instant,
        router: &(impl World + Execute),
    ) -> Result<(), Event> {
        if self.step_and_claim(cell, event, now, router)? {
            self.execute(cell, router);
        }
        Ok(())
    }

    /// Whether the caller is to execute the path's effects.
    #[allow(clippy::result_large_err, reason = "as in `step_cell`")]
    fn step_and_claim(
        &self,
        cell: &Arc<Cell>,
        event: Event,
        now: Instant,
        world: &impl World,
    ) -> Result<bool, Event> {
        let mut state = cell.lock();
        if state.forgotten {
            return Err(event);
        }
        let State { path, effects, .. } = &mut *state;
        path.step(event, now, world, effects);
        self.schedule(cell.slot, &mut state, now);
        let claimed = !state.executing && !state.effects.is_empty();
        state.executing |= claimed;
        Ok(claimed)
    }

    fn schedule(&self, slot: usize, state: &mut State, now: Instant) {
        if state.scheduled.is_some_and(|at| at <= now + SCHEDULE_GRAIN) {
            return;
        }
        let Some(due) = state.path.due().or_else(|| state.path.forget_at()) else { return };
        if state.scheduled.is_some_and(|at| at <= due) {
            return;
        }
        let mut timers = self.timers();
        if let Some(at) = state.scheduled.replace(due) {
            timers.remove(&(at, slot));
        }
        timers.insert((due, slot), ());
    }

    fn execute(&self, cell: &Arc<Cell>, router: &(impl World + Execute)) {
        loop {
            let effects = {
                let mut state = cell.lock();
                if state.effects.is_empty() {
                    state.executing = false;
                    return;
                }
                std::mem::take(&mut state.effects)
            };
            let mut no_room = Vec::new();
            for effect in effects {
                match effect {
                    // What follows must not overtake what found no room.
                    Effect::HandOut { key, .. } if !no_room.is_empty() => no_room.push(key),
                    effect => no_room.extend(router.execute(cell, effect).err()),
                }
            }
            if !no_room.is_empty() {
                self.give_back(cell, no_room, router);
            }
        }
    }

    /// The path takes back what it let go and the workers had no room for.
    fn give_back(&self, cell: &Arc<Cell>, mut no_room: Vec<SeenKey>, world: &impl World) {
        let mut state = cell.lock();
        state.effects.retain(|effect| match effect {
            Effect::HandOut { key, .. } => {
                no_room.push(*key);
                false
            }
            _ => true,
        });
        let now = Instant::now();
        let State { path, effects, .. } = &mut *state;
        path.step(Event::NoRoom(no_room), now, world, effects);
        self.schedule(cell.slot, &mut state, now);
    }

    /// Looks at every path whose time has come, and forgets those in which nothing is left.
    pub fn tick(&self, now: Instant, router: &(impl World + Execute)) {
        loop {
            let slot = {
                let mut timers = self.timers();
                match timers.first_key_value() {
                    Some((&(at, slot), ())) if at <= now => {
                        timers.remove(&(at, slot));
                        slot
                    }
                    _ => return,
                }
            };
            let cell = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(slot).cloned();
            let Some(cell) = cell else { continue };
            {
                let mut state = cell.lock();
                state.scheduled = None;
                if state.path.forget_at().is_none_or(|at| at > now) {
                    drop(state);
                    let _ = self.step_cell(&cell, Event::Tick, now, router);
                    continue;
                }
            }
            self.forget(&cell, now);
        }
    }

    fn forget(&self, cell: &Arc<Cell>, now: Instant) {
        let target = cell.ask(|path| path.target().clone());
        let mut shard = self.shard(&target);
        let mut state = cell.lock();
        let is_idle = state.effects.is_empty() && !state.executing;
        if !is_idle || state.path.forget_at().is_none_or(|at| at > now) {
            self.schedule(cell.slot, &mut state, now);
            return;
        }
        state.forgotten = true;
        drop(state);
        shard.remove(&target);
        drop(shard);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.get(cell.slot).is_some_and(|there| Arc::ptr_eq(there, cell)) {
            slots.remove(cell.slot);
        }
    }
}

impl Default for PathTable {
    fn default() -> Self {
        Self::new()
    }
}
