//! The number that stands in a session's id: the session's counter, encrypted, so that nobody can tell other ids from
//! their own. Whoever guesses finds one of `n` sessions with each of 2^64 / n tries. Pure.
//!
//! The cipher is Speck64/128 (Beaulieu and others, "The Simon and Speck Families of Lightweight Block Ciphers", IACR
//! ePrint 2013/404): a published one of 64 bits, so that an id is no longer than its counter, and a session costs no
//! memory for it.

use super::Hub;

/// Rounds of the cipher.
const ROUNDS: usize = 27;

/// The key of one process, as its round keys.
#[derive(Clone)]
pub(super) struct Numbers([u32; ROUNDS]);

impl Numbers {
    pub(super) fn generate() -> Self {
        Self::with_key(rand::random())
    }

    /// The words of the key, the last one first as in the publication's figures.
    fn with_key([mut key, mut a, mut b, mut c]: [u32; 4]) -> Self {
        let mut rounds = [0; ROUNDS];
        for (round, at) in rounds.iter_mut().zip(0..) {
            *round = key;
            let next = key.wrapping_add(a.rotate_right(8)) ^ at;
            key = key.rotate_left(3) ^ next;
            (a, b, c) = (b, c, next);
        }
        Self(rounds)
    }

    pub(super) fn of(&self, counter: u64) -> u64 {
        let (mut x, mut y) = halves(counter);
        for key in self.0 {
            x = x.rotate_right(8).wrapping_add(y) ^ key;
            y = y.rotate_left(3) ^ x;
        }
        whole(x, y)
    }

    /// The inverse of [`Numbers::of`]. For a guessed number it is as good as random.
    pub(super) fn counter(&self, number: u64) -> u64 {
        let (mut x, mut y) = halves(number);
        for key in self.0.iter().rev() {
            y = (y ^ x).rotate_right(3);
            x = (x ^ key).wrapping_sub(y).rotate_left(8);
        }
        whole(x, y)
    }
}

impl Hub {
    /// What stands in the id of the session with this counter.
    pub fn number_of(&self, counter: u64) -> u64 {
        self.numbers.of(counter)
    }

    /// The inverse of [`Hub::number_of`]; of a number that no id has, the counter of no session.
    pub fn counter_of(&self, number: u64) -> u64 {
        self.numbers.counter(number)
    }
}

/// The key is a secret.
impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Numbers")
    }
}

fn halves(block: u64) -> (u32, u32) {
    ((block >> 32) as u32, block as u32)
}

fn whole(x: u32, y: u32) -> u64 {
    u64::from(x) << 32 | u64::from(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vector() {
        let numbers = Numbers::with_key([0x0302_0100, 0x0b0a_0908, 0x1312_1110, 0x1b1a_1918]);
        assert_eq!(numbers.of(0x3b72_6574_7475_432d), 0x8c6f_a548_454e_028b);
        assert_eq!(numbers.counter(0x8c6f_a548_454e_028b), 0x3b72_6574_7475_432d);
    }

    #[test]
    fn neighbours_have_nothing_in_common_and_each_process_has_its_own() {
        let (one, other) = (Numbers::generate(), Numbers::generate());
        let mut bits = 0;
        for counter in 0..1_000 {
            assert_eq!(one.counter(one.of(counter)), counter);
            assert_ne!(one.of(counter), other.of(counter));
            bits += (one.of(counter) ^ one.of(counter + 1)).count_ones();
        }
        assert!((30_000..34_000).contains(&bits), "{bits} bits of 64,000 differ");
    }
}
