//! Devices of the machine that VMs get as they are: registers in stage-2, interrupts through list
//! registers with the HW bit.
//!
//! What may be given away is decided by [`vmm_services::passthrough`]; here is who has what.

use super::{Reason, Space, Vm};
use crate::cores;
use crate::irq::{self, IrqError};
use crate::run;
use crate::sync::Lock;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use mm::ledger::PhysRange;
use mm::{Ipa, PhysAddr};
use spin::Once;
use vmm_services::machine::{MachineTree, Region};
use vmm_services::passthrough::{self, MAX_PASSTHROUGH, Passthrough};
use vmm_services::vgic::MAX_INTID;
use vmm_services::{VcpuSet, VmServices};

/// Most devices that all VMs together have.
const MAX_GIVEN: usize = 16;
/// Interrupts that can be a VM's, and those below.
const INTERRUPTS: usize = MAX_INTID as usize + 1;

/// The machine's device tree, and the pages of the hypervisor's console.
static MACHINE: Once<(MachineTree<'static>, Region)> = Once::new();
/// Devices that VMs have.
static GIVEN: Lock<ArrayVec<Given, MAX_GIVEN>> = Lock::new(ArrayVec::new_const());
/// Index of the VM that has each interrupt, plus one; 0 for none.
static OWNERS: [AtomicU8; INTERRUPTS] = [const { AtomicU8::new(0) }; INTERRUPTS];
/// Interrupts that were taken and that their VM has not been told of yet, one bit each.
static RAISED: [AtomicU32; INTERRUPTS / 32] = [const { AtomicU32::new(0) }; INTERRUPTS / 32];

/// A device that a VM has.
struct Given {
    vm: u8,
    pages: Region,
    intid: Option<u32>,
}

/// Remembers the machine's device tree and the pages of the console in use, once at boot.
pub fn init(tree: MachineTree<'static>, console: PhysRange) {
    let console = Region { base: console.start.get(), size: console.bytes() };
    MACHINE.call_once(|| (tree, console));
}

/// Gives `vm`, a normal VM that has its memory and its interrupt controller, the devices that the bundle
/// says, and enables their interrupts.
///
/// # Errors
///
/// Why it cannot have one of them. Those before it are its own until [`release`].
pub fn assign(vm: &'static Vm, devices: &[Passthrough<'_>]) -> Result<(), Reason> {
    for device in devices {
        give(vm, device)
            .map_err(|error| Reason::new(format_args!("device at {:#x}: {error}", device.base)))?;
    }
    Ok(())
}

fn give(vm: &'static Vm, device: &Passthrough<'_>) -> Result<(), Reason> {
    let (tree, console) =
        MACHINE.get().ok_or_else(|| Reason::new(format_args!("no device tree")))?;
    let trigger = passthrough::check(tree, *console, device)
        .map_err(|refusal| Reason::new(format_args!("{refusal}")))?;
    let pages = device.pages();
    let mut given = GIVEN.lock();
    let taken = given.iter().find(|other| {
        let same_pages = other.pages.base < pages.end() && pages.base < other.pages.end();
        same_pages || other.intid.is_some() && other.intid == device.intid
    });
    if let Some(other) = taken {
        let name = super::all().get(usize::from(other.vm)).map_or("?", Vm::name);
        return Err(Reason::new(format_args!("vm {name} has it")));
    }
    given
        .try_push(Given { vm: vm.index, pages, intid: device.intid })
        .map_err(|_| Reason::new(format_args!("more than {MAX_GIVEN} devices are given away")))?;
    drop(given);
    if let Space::Normal(memory) = &mut *vm.space.lock() {
        memory
            .map_device(&vm.vmid, Ipa::new(pages.base), PhysAddr::new(pages.base), pages.size)
            .map_err(|error| Reason::new(format_args!("{error}")))?;
    }
    if let (Some(intid), Some(trigger)) = (device.intid, trigger) {
        enable(vm, intid, trigger).map_err(|error| Reason::new(format_args!("{error}")))?;
    }
    log::info!("vm {}: has the device at {:#x}", vm.name(), device.base);
    Ok(())
}

fn enable(vm: &Vm, intid: u32, trigger: passthrough::Trigger) -> Result<(), IrqError> {
    let refused = IrqError::Setting(intid);
    if let Some(services) = vm.services.lock().as_mut() {
        services.vgic_mut().tie_spi(intid, trigger == passthrough::Trigger::Level);
    }
    // It is taken on the first core that the VM may run on and that is up.
    let affinity = vm.spec().and_then(|spec| spec.affinity).unwrap_or(u32::MAX);
    let core = (affinity & cores::online_mask()).trailing_zeros() as usize;
    let (word, bit) = word_and_bit(intid);
    RAISED.get(word).ok_or(refused)?.fetch_and(!bit, Ordering::Relaxed);
    OWNERS.get(intid as usize).ok_or(refused)?.store(vm.index + 1, Ordering::Release);
    irq::give_spi(intid, core, trigger)
}

fn word_and_bit(intid: u32) -> (usize, u32) {
    (intid as usize / 32, 1 << (intid % 32))
}

/// Takes back what [`assign`] gave to `vm`: its interrupts are off and inactive, and the devices are
/// free for others. The mappings go with its stage-2 tables.
pub fn release(vm: &Vm) {
    GIVEN.lock().retain(|given| {
        if given.vm != vm.index {
            return true;
        }
        if let Some(intid) = given.intid {
            if let Some(owner) = OWNERS.get(intid as usize) {
                owner.store(0, Ordering::Release);
            }
            if let Err(error) = irq::take_spi_back(intid) {
                log::error!("vm {}: {error}", vm.name());
            }
        }
        false
    });
}

/// Notes that the shared interrupt `intid` was taken, and calls on the VM whose it is. `None` if it
/// is no VM's, else whether this core has to pick anew; the interrupt has to stay active then.
pub fn take_interrupt(intid: u32) -> Option<bool> {
    let owner = OWNERS.get(intid as usize)?.load(Ordering::Acquire).checked_sub(1)?;
    let vm = super::all().get(usize::from(owner))?;
    let (word, bit) = word_and_bit(intid);
    RAISED.get(word)?.fetch_or(bit, Ordering::Release);
    Some(run::call_on(vm))
}

/// Tells `services`, those of `vm`, of its interrupts that were taken. Returns whom to wake.
pub fn deliver(vm: &Vm, services: &mut VmServices) -> VcpuSet {
    let mut woken = VcpuSet::EMPTY;
    let spec = vm.spec().map(|spec| &spec.passthrough);
    let interrupts = spec.into_iter().flatten().filter_map(|device| device.intid);
    for intid in interrupts.take(MAX_PASSTHROUGH) {
        let (word, bit) = word_and_bit(intid);
        let raised = RAISED.get(word).map_or(0, |raised| raised.fetch_and(!bit, Ordering::Acquire));
        if raised & bit != 0 {
            woken.extend(services.vgic_mut().raise_hardware_spi(intid));
        }
    }
    woken
}
