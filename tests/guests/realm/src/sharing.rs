//! One page turned shared, used with the host, and turned private again.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use guest_rt::{host, mmu};

use crate::rsi::{self, Ripas};

const WORDS: usize = 512;
const PAGE_SIZE: u64 = 4096;
/// What the page holds while it is private: must never be seen through the alias.
const SECRET: u64 = 0x5ec4_e700_0000_0000;
/// First word of what the realm hands to the host; the last ones wrap when the host adds to them.
const PATTERN: u64 = u64::MAX - 255;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; WORDS]>);

// SAFETY: only `check` touches the page, by volatile accesses, and it runs on one vCPU.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; WORDS]));

/// Runs the whole exchange.
///
/// # Errors
///
/// Says which step failed.
pub(crate) fn check(alias: u64) -> Result<(), &'static str> {
    let private = NonNull::from(&PAGE.0).cast::<u64>();
    let base = private.addr().get() as u64;
    let shared = mmu::shared::<u64>(base);

    fill(private, |i| SECRET + i);
    if !all(private, |i| SECRET + i) {
        return Err("private page does not hold what was written");
    }

    rsi::set_ripas(base, base + PAGE_SIZE, Ripas::Empty).map_err(|_| "IPA_STATE_SET to EMPTY")?;
    if rsi::ripas(base, base + PAGE_SIZE) != Ok((Ripas::Empty as u64, base + PAGE_SIZE)) {
        return Err("page is not EMPTY after IPA_STATE_SET");
    }
    if any(shared, |word| word & SECRET == SECRET) {
        return Err("private contents show through the shared alias");
    }
    fill(shared, |i| PATTERN.wrapping_add(i));
    if host::exchange_page(alias | base) != Ok(0) {
        return Err("host refused to exchange data through the shared page");
    }
    if !all(shared, |i| PATTERN.wrapping_add(i).wrapping_add(1)) {
        return Err("host's answer in the shared page is wrong");
    }

    rsi::set_ripas(base, base + PAGE_SIZE, Ripas::Ram).map_err(|_| "IPA_STATE_SET to RAM")?;
    if rsi::ripas(base, base + PAGE_SIZE) != Ok((Ripas::Ram as u64, base + PAGE_SIZE)) {
        return Err("page is not RAM after IPA_STATE_SET");
    }
    if !all(private, |_| 0) {
        return Err("page is not zero after it became private again");
    }
    fill(private, |i| !i);
    if !all(private, |i| !i) {
        return Err("page that became private again does not hold what was written");
    }
    Ok(())
}

/// Checks that nothing can be shared: neither is the page given up, nor is there anything at its alias.
///
/// # Errors
///
/// Says what was possible.
pub(crate) fn check_refused() -> Result<(), &'static str> {
    let private = NonNull::from(&PAGE.0).cast::<u64>();
    let base = private.addr().get() as u64;
    fill(private, |i| SECRET + i);
    if rsi::set_ripas(base, base + PAGE_SIZE, Ripas::Empty).is_ok() {
        return Err("IPA_STATE_SET to EMPTY was allowed");
    }
    if rsi::ripas(base, base + PAGE_SIZE) != Ok((Ripas::Ram as u64, base + PAGE_SIZE)) {
        return Err("page is not RAM any more after a change that was rejected");
    }
    let alias = mmu::shared::<u64>(base).addr().get() as u64;
    // SAFETY: a load from a page that holds nothing of this program.
    if unsafe { guest_rt::attempt!("ldr x0, [x0]", alias) }.is_ok() {
        return Err("there is memory at the shared alias");
    }
    if !all(private, |i| SECRET + i) {
        return Err("private page does not hold what was written");
    }
    Ok(())
}

fn fill(page: NonNull<u64>, value: impl Fn(u64) -> u64) {
    for i in 0..WORDS {
        // SAFETY: `page` is the private or the shared mapping of `PAGE`, which has 512 words.
        let word = unsafe { page.add(i) };
        // SAFETY: as above, and it is aligned; nothing else refers to the page.
        unsafe { word.write_volatile(value(i as u64)) }
    }
}

fn all(page: NonNull<u64>, value: impl Fn(u64) -> u64) -> bool {
    (0..WORDS).all(|i| read(page, i) == value(i as u64))
}

fn any(page: NonNull<u64>, matches: impl Fn(u64) -> bool) -> bool {
    (0..WORDS).any(|i| matches(read(page, i)))
}

fn read(page: NonNull<u64>, index: usize) -> u64 {
    // SAFETY: `page` is a mapping of `PAGE`, and the callers stay below its 512 words.
    let word = unsafe { page.add(index) };
    // SAFETY: as above, and it is aligned; nothing else refers to the page.
    unsafe { word.read_volatile() }
}
