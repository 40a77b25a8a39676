//! Arguments of the plugin, and which part of the machine an instruction belongs to.

use std::path::PathBuf;

/// Parts of the machine whose instructions are counted apart.
pub(crate) const PARTS: [&str; 4] = ["hypervisor", "rmm", "firmware", "guest"];
/// Index of the hypervisor in [`PARTS`].
pub(crate) const HYPERVISOR: usize = 0;
/// Index of the RMM in [`PARTS`].
pub(crate) const RMM: usize = 1;
/// Index of the firmware, and of all else that lies outside RAM, in [`PARTS`].
pub(crate) const FIRMWARE: usize = 2;
/// Index of guests, and of all else that lies in RAM, in [`PARTS`].
pub(crate) const GUEST: usize = 3;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) size: u64,
}

impl Range {
    /// Offset of `address` in the range.
    pub(crate) fn offset(self, address: u64) -> Option<u64> {
        address.checked_sub(self.base).filter(|offset| *offset < self.size)
    }

    fn parse(text: &str) -> Option<Self> {
        let (base, size) = text.split_once(':')?;
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        Some(Self { base: number(base)?, size: number(size)? })
    }
}

/// What to count, and where the result goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) out: PathBuf,
    pub(crate) ram: Range,
    pub(crate) hypervisor: Range,
    pub(crate) rmm: Option<Range>,
}

impl Config {
    /// Reads the arguments.
    ///
    /// # Errors
    ///
    /// Names the argument that is missing, unknown or malformed.
    pub(crate) fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let (mut out, mut ram, mut hypervisor, mut rmm) = (None, None, None, None);
        for argument in arguments {
            let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
            let range = || Range::parse(value).ok_or(format!("{argument}: not 0xBASE:0xSIZE"));
            match key {
                "out" => out = Some(PathBuf::from(value)),
                "ram" => ram = Some(range()?),
                "hypervisor" => hypervisor = Some(range()?),
                "rmm" => rmm = Some(range()?),
                _ => return Err(format!("{argument}: unknown")),
            }
        }
        let missing = |key| format!("{key}: missing");
        Ok(Self {
            out: out.ok_or_else(|| missing("out"))?,
            ram: ram.ok_or_else(|| missing("ram"))?,
            hypervisor: hypervisor.ok_or_else(|| missing("hypervisor"))?,
            rmm,
        })
    }

    /// The part, as an index into [`PARTS`], of an instruction at physical address `address`;
    /// `None` is outside RAM.
    pub(crate) fn part(&self, address: Option<u64>) -> usize {
        let Some(address) = address else { return FIRMWARE };
        if self.hypervisor.offset(address).is_some() {
            HYPERVISOR
        } else if self.rmm.is_some_and(|rmm| rmm.offset(address).is_some()) {
            RMM
        } else {
            GUEST
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, String> {
        Config::parse(arguments.iter().copied())
    }

    #[test]
    fn parts_by_address() {
        let config = parse(&[
            "out=/dev/null",
            "ram=0x40000000:0xc0000000",
            "hypervisor=0x60000000:0x100000",
            "rmm=0x40100000:0x1800000",
        ])
        .unwrap();
        assert_eq!(config.part(Some(0x6000_0000)), HYPERVISOR);
        assert_eq!(config.part(Some(0x600f_fffc)), HYPERVISOR);
        assert_eq!(config.part(Some(0x6010_0000)), GUEST);
        assert_eq!(config.part(Some(0x4010_0000)), RMM);
        assert_eq!(config.part(Some(0x4000_0000)), GUEST);
        assert_eq!(config.part(None), FIRMWARE);
    }

    #[test]
    fn arguments_that_are_refused() {
        assert_eq!(parse(&["ram=0x0:0x1", "hypervisor=0x0:0x1"]), Err("out: missing".into()));
        assert!(parse(&["out=a", "ram=5:6"]).unwrap_err().contains("not 0xBASE:0xSIZE"));
        assert_eq!(parse(&["speed=1"]), Err("speed=1: unknown".into()));
    }
}
