//! Counts of granules by state.

use core::fmt;

use super::state::{GranuleState, KINDS, Owner};

/// How many granules are in each state, for the machine or for one owner.
///
/// Two equal censuses before and after an operation prove that it lost and gained nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Census {
    by_kind: [u64; KINDS],
}

impl Census {
    pub(super) const EMPTY: Self = Self { by_kind: [0; KINDS] };

    pub(super) fn add(&mut self, state: GranuleState, granules: u64) {
        if let Some(count) = self.by_kind.get_mut(usize::from(state.kind_code())) {
            *count += granules;
        }
    }

    /// Granules in the same kind of state as `state`, whoever owns them.
    #[must_use]
    pub fn of(&self, state: GranuleState) -> u64 {
        self.by_kind.get(usize::from(state.kind_code())).copied().unwrap_or(0)
    }

    /// Granules in the allocator.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.of(GranuleState::Free)
    }

    /// Granules that the RMM refused to give back.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.of(GranuleState::Lost { owner: Owner::HYPERVISOR })
    }

    /// Granules that the normal world must not touch, lost ones included.
    #[must_use]
    pub fn in_realm_world(&self) -> u64 {
        self.states().filter(|(state, _)| !state.is_ns()).map(|(_, count)| count).sum()
    }

    /// Granules that the RMM uses.
    #[must_use]
    pub fn held_by_rmm(&self) -> u64 {
        let held = |(state, count)| matches!(state, GranuleState::Rmm { .. }).then_some(count);
        self.states().filter_map(held).sum()
    }

    /// All granules counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_kind.iter().sum()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    /// The states that occur, with their counts. The owner of the states means nothing here.
    pub fn states(&self) -> impl Iterator<Item = (GranuleState, u64)> {
        self.by_kind
            .iter()
            .zip(0u8..)
            .filter(|(count, _)| **count > 0)
            .map(|(count, code)| (GranuleState::from_code(code, Owner::HYPERVISOR), *count))
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (state, count) in self.states() {
            f.write_str(separator)?;
            match state {
                GranuleState::Free => write!(f, "{count} free")?,
                GranuleState::Reserved(used_for) => write!(f, "{count} reserved ({used_for})")?,
                GranuleState::Ns { used_for, .. } => write!(f, "{count} {used_for}")?,
                GranuleState::Delegated { .. } => write!(f, "{count} delegated")?,
                GranuleState::Rmm { used_for, .. } => write!(f, "{count} {used_for}")?,
                GranuleState::Lost { .. } => write!(f, "{count} lost")?,
            }
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
