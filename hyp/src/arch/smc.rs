//! Calls to EL3 firmware and, through it, to the RMM (SMCCC 1.2 and later).

/// Executes `SMC #0` with function identifier `fid` in `x0` and `args` in `x1` to `x7`; returns
/// `x0` to `x7`. `x8` to `x17` are passed as zero and their results discarded.
#[must_use]
pub fn call(fid: u32, args: [u64; 7]) -> [u64; 8] {
    let mut all = [0; 17];
    all[..7].copy_from_slice(&args);
    let results = smccc::smc64(fid, all);
    let mut out = [0; 8];
    out.copy_from_slice(&results[..8]);
    out
}

/// The machine as the realm driver sees it: calls by SMC, memory by its physical address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smc;
