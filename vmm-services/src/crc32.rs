//! CRC-32 of IEEE 802.3, as the bundle uses it.

/// Continues a checksum: takes that of the bytes before `data` (zero for none), returns that of
/// all. The hypervisor passes one that uses the CRC32 instructions; [`update`] is the portable one.
pub type Update = fn(crc: u32, data: &[u8]) -> u32;

/// Reflected polynomial.
const POLYNOMIAL: u32 = 0xedb8_8320;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Continues the checksum `crc` with `data`; see [`Update`].
#[must_use]
pub fn update(crc: u32, data: &[u8]) -> u32 {
    !data.iter().fold(!crc, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::update;

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(update(0, b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn pieces_equal_the_whole() {
        assert_eq!(update(update(0, b"12345"), b"6789"), update(0, b"123456789"));
        assert_eq!(update(7, b""), 7);
    }
}
