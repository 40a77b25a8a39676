//! The settings of the physical GIC, one register after the other, to be compared with what they were.

use super::{CONTROLLER, FIRST_SPI, KICK, REDISTRIBUTOR};
use crate::arch::control::Register;
use safe_mmio::{UniqueMmioPointer, field};

/// Most registers that [`each_shared`] shows: group, enable, active, priority and configuration words
/// and the routes of INTIDs 32 to 1019.
pub const SHARED_MAX: usize = 3 * 31 + 248 + 62 + 988;
/// Number of registers that [`each_private`] shows.
pub const PRIVATE_COUNT: usize = 4 + 8 + 2;

/// The number of the first word that holds shared interrupts, with `bits` for each, and of those up to
/// `end` (an INTID).
const fn words(bits: usize, end: usize) -> core::ops::Range<usize> {
    FIRST_SPI as usize * bits / 32..(end * bits).div_ceil(32)
}

/// Shows how the shared interrupts are set up: group, enable, active state, priority, configuration and
/// route. Not whether they are pending: devices that nobody drives may do as they like.
pub fn each_shared(see: &mut dyn FnMut(Register, u64)) {
    let Some(controller) = CONTROLLER.get() else { return };
    let mut registers = controller.distributor.lock();
    let end = FIRST_SPI + field!(registers, typer).read().num_spis();
    let end = end as usize;
    macro_rules! show {
        ($name:literal, $field:ident, $range:expr) => {
            let array = field!(registers, $field);
            for (index, register) in array.split().into_iter().enumerate() {
                if $range.contains(&index) {
                    see(Register::nth($name, index), register.read().into());
                }
            }
        };
    }
    show!("GICD_IGROUPR", igroupr, words(1, end));
    show!("GICD_ISENABLER", isenabler, words(1, end));
    show!("GICD_ISACTIVER", isactiver, words(1, end));
    show!("GICD_IPRIORITYR", ipriorityr, words(8, end));
    show!("GICD_ICFGR", icfgr, words(2, end));
    // Numbered by INTID, from 32 on.
    let routes = field!(registers, irouter);
    for (intid, route) in (FIRST_SPI as usize..end).zip(routes.split()) {
        see(Register::nth("GICD_IROUTER", intid), route.read());
    }
}

/// Shows how this core's own interrupts are set up, and whether those are pending that only a guest
/// makes so: SGIs but [`KICK`], its timers, and the maintenance of its list registers.
pub fn each_private(see: &mut dyn FnMut(Register, u64)) {
    let Some(controller) = CONTROLLER.get() else { return };
    let ppis = &controller.ppis;
    let guests = [ppis.virtual_timer, ppis.physical_timer, ppis.maintenance];
    let guests = guests.iter().fold(0xffff & !(1 << KICK), |mask: u32, intid| {
        mask | 1_u32.checked_shl(*intid).unwrap_or(0)
    });
    REDISTRIBUTOR.with(|slot| {
        let Some(mut registers) = slot.as_mut().map(UniqueMmioPointer::reborrow) else { return };
        let mut sgi = field!(registers, sgi);
        macro_rules! show {
            ($name:literal, $field:ident, $count:literal, $mask:expr) => {
                let array = field!(sgi, $field);
                for (index, register) in array.split().into_iter().enumerate().take($count) {
                    see(Register::nth($name, index), (register.read() & $mask).into());
                }
            };
        }
        show!("GICR_IGROUPR", igroupr, 1, u32::MAX);
        show!("GICR_ISENABLER", isenabler, 1, u32::MAX);
        show!("GICR_ISACTIVER", isactiver, 1, u32::MAX);
        show!("GICR_ISPENDR", ispendr, 1, guests);
        show!("GICR_IPRIORITYR", ipriorityr, 8, u32::MAX);
        show!("GICR_ICFGR", icfgr, 2, u32::MAX);
    });
}
