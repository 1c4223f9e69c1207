//! A small seeded generator of numbers: the same seed yields the same traffic in every version.

/// Xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator for `seed`.
    pub(crate) fn new(seed: u64) -> Random {
        // One round of splitmix64, so that small seeds differ at once; the state is never 0.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((z ^ (z >> 31)) | 1)
    }

    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// At least 0, below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// At least 0, below `n` (0 for `n` = 0).
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// An index of a list of length `n`.
    pub(crate) fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of `list`, which is not empty.
    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// Exponentially distributed with this mean.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// About log-normally distributed around this median: `spread` 1 means a factor of about e.
    pub(crate) fn around(&mut self, median: f64, spread: f64) -> f64 {
        let normal = (0..6).map(|_| self.unit()).sum::<f64>() * std::f64::consts::SQRT_2 - 3.0 * std::f64::consts::SQRT_2;
        median * (spread * normal).exp()
    }
}

/// Zipf's law: rank r is drawn with a weight of 1/r^s.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    /// Over ranks 0 to `n` - 1; `n` is at least 1.
    pub(crate) fn new(n: usize, s: f64) -> Zipf {
        let mut sum = 0.0;
        let cumulated = (1..=n.max(1))
            .map(|rank| {
                sum += 1.0 / (rank as f64).powf(s);
                sum
            })
            .collect();
        Zipf { cumulated }
    }

    /// A rank.
    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let total = self.cumulated.last().copied().unwrap_or(1.0);
        let at = random.unit() * total;
        self.cumulated.partition_point(|&sum| sum <= at).min(self.cumulated.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence_for_ever() {
        let mut random = Random::new(7);
        let first: Vec<u64> = (0..3).map(|_| random.below(1000)).collect();
        let mut again = Random::new(7);
        assert_eq!(first, (0..3).map(|_| again.below(1000)).collect::<Vec<_>>());
        assert_ne!(first, {
            let mut other = Random::new(8);
            (0..3).map(|_| other.below(1000)).collect::<Vec<_>>()
        });
    }

    #[test]
    fn low_ranks_are_drawn_more_often() {
        let (zipf, mut random) = (Zipf::new(50, 1.1), Random::new(1));
        let mut counts = [0_u32; 50];
        for _ in 0..20_000 {
            counts[zipf.draw(&mut random)] += 1;
        }
        assert!(counts[0] > 3 * counts[5] && counts[5] > counts[40], "seed 1: {counts:?}");
    }
}
