//! From addresses to the names of functions.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind, SymbolSection};

/// The functions of a program that is linked at address 0.
pub(super) struct Symbols {
    /// Address and name.
    functions: BTreeMap<u64, String>,
}

impl Symbols {
    /// Reads the symbol table of an ELF file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is no ELF file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {path:?}"))?;
        let file = object::File::parse(&*bytes).with_context(|| format!("{path:?}"))?;
        // Assembly has labels without a type. `$x` and `$d` tell code from data.
        let functions = file
            .symbols()
            .filter(|symbol| symbol.section() != SymbolSection::Absolute)
            .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown))
            .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?)))
            .filter(|(_, name)| !name.is_empty() && !name.starts_with('$'))
            .map(|(address, name)| (address, format!("{:#}", rustc_demangle::demangle(name))));
        Ok(Self { functions: functions.collect() })
    }

    /// Adds up counts by function, the largest first.
    pub(super) fn attribute(&self, counts: impl Iterator<Item = (u64, u64)>) -> Vec<(&str, u64)> {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (address, count) in counts {
            let function = self.functions.range(..=address).next_back();
            *sums.entry(function.map_or("?", |(_, name)| name)).or_default() += count;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_to_the_function_before() {
        let functions = [(16, "a".to_owned()), (32, "b".to_owned())].into();
        let symbols = Symbols { functions };
        let counts = [(0, 1), (16, 10), (28, 10), (32, 100), (4096, 100)];
        assert_eq!(symbols.attribute(counts.into_iter()), [("b", 200), ("a", 20), ("?", 1)]);
    }
}
