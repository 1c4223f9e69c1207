//! Which partition a key belongs to: murmur2, as Kafka's Java client does, so that others can join in.

use crate::ids::PartitionId;

/// The partition of `key` among `partitions`; a record without a key goes to partition 0.
pub fn partition_of(key: Option<&str>, partitions: u32) -> PartitionId {
    let Some(key) = key else { return PartitionId(0) };
    PartitionId((murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions.max(1))
}

/// The shortest number that, as a key, lies in `partition` of `partitions`: for whoever chooses the
/// partition, and not the key.
pub fn key_in(partition: PartitionId, partitions: u32) -> String {
    (0u32..).map(|number| number.to_string()).find(|key| partition_of(Some(key), partitions) == partition).unwrap_or_default()
}

/// MurmurHash2, 32 bit, with the seed of Kafka's Java client.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut h: u32 = 0x9747_b28c ^ length;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let tail = words.remainder();
    for (i, byte) in tail.iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !tail.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_key() {
        for partitions in [1, 4, 16, 144] {
            for partition in (0..partitions).map(PartitionId) {
                assert_eq!(partition_of(Some(&key_in(partition, partitions)), partitions), partition);
            }
        }
    }

    /// Expected values: the unit tests of Kafka's own `Utils.murmur2`.
    #[test]
    fn agrees_with_the_java_client() {
        for (text, hash) in
            [("21", -973_932_308_i32), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536), ("abc", 479_470_107)]
        {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }
}
