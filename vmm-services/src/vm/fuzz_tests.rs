//! Guests that do anything: whatever they access, call, or leave in the rings of their devices, the
//! services answer and never panic, and name no vCPU that there is not.
//!
//! The crate `fuzz` says how to run this for longer.

use super::{Context, RealmConfig, ServicesConfig, VmServices};
use crate::exit::{
    Access, Exit, HOST_CALL_REGISTERS, MmioAccess, PsciNotice, Resume, Ripas, SysReg, WaitKind,
    Width,
};
use crate::ids::VcpuId;
use crate::layout;
use crate::manifest::{BlockSpec, Conversions, Placement, VirtioDevice};
use crate::testing::{Alone, Counting, Lines, Ram, RamDisks, Timer};
use crate::vgic::{LrImage, VgicConfig};
use fuzz::Input;
use mm::Ipa;
use std::boxed::Box;
use std::vec;

const VCPUS: usize = 2;
/// Memory of the guest in bytes.
const MEMORY: usize = 0x1_0000;
/// Size of the disk in bytes.
const DISK: usize = 0x4000;
const UART: u64 = 0x0900_0000;
/// Calls of [`VmServices::work`] within which devices are done with what a guest can have queued: 64
/// entries in each of two queues of three devices, each call at least one.
const WORK_CALLS: usize = 64 * 2 * 3;

/// What a guest has around it.
struct Guest<'i> {
    input: &'i Input,
    services: Box<VmServices>,
    memory: Ram,
    lines: Lines,
    disks: RamDisks,
    images: [LrImage; VCPUS],
}

impl Guest<'_> {
    fn with_context<R>(&mut self, f: impl FnOnce(&mut VmServices, &mut Context<'_>) -> R) -> R {
        let mut context = Context {
            memory: &self.memory,
            console: &mut self.lines,
            entropy: &Counting::default(),
            disks: &self.disks,
            peers: &mut Alone,
            countdown: &Timer::default(),
        };
        f(&mut self.services, &mut context)
    }

    fn exit(&mut self, vcpu: VcpuId, exit: &Exit) {
        let mut registers = [0; HOST_CALL_REGISTERS];
        registers.iter_mut().for_each(|register| *register = self.input.number());
        let response =
            self.with_context(|services, context| services.handle(vcpu, exit, &registers, context));
        assert!(response.kick.iter().all(|kicked| kicked != vcpu && kicked.index() < VCPUS));
        if let Resume::CpuOn { target, .. } | Resume::PsciComplete { target, .. } = response.resume
        {
            assert!(target.index() < VCPUS);
        }
    }

    fn vcpu(&self) -> VcpuId {
        VcpuId::new(self.input.index(VCPUS)).expect("a vCPU")
    }

    fn access(&mut self, ipa: u64, access: Access) {
        let width = self.input.pick(&[Width::Byte, Width::Half, Width::Word, Width::Double]);
        let access = match access {
            Access::Write(value) => Access::Write(value & width.mask()),
            Access::Read => Access::Read,
        };
        let vcpu = self.vcpu();
        self.exit(vcpu, &Exit::Mmio(MmioAccess { ipa: Ipa::new(ipa), width, access }));
    }

    fn store_word(&mut self, ipa: u64, value: u64) {
        let access = Access::Write(value & u64::from(u32::MAX));
        let access = MmioAccess { ipa: Ipa::new(ipa), width: Width::Word, access };
        self.exit(VcpuId::BOOT, &Exit::Mmio(access));
    }

    /// A device register, or a place where there is none.
    fn touch_device(&mut self) {
        let input = self.input;
        let (base, size) = input.pick(&[
            (layout::GICD.get(), layout::GICD_SIZE),
            (layout::GICR.get(), VCPUS as u64 * layout::GICR_STRIDE),
            (UART, layout::UART_SIZE),
            (layout::VIRTIO.get(), 4 * layout::VIRTIO_STRIDE),
            (layout::FLASH.get(), layout::FLASH_SIZE),
            (0, 1 << 40),
        ]);
        let offset = input.below(size);
        let offset = if input.one_in(16) { offset } else { offset & !7 | input.pick(&[0, 4]) };
        let access = if input.one_in(2) { Access::Read } else { Access::Write(input.number()) };
        self.access(base + offset, access);
    }

    /// The page `usual`, or another one of the first eight.
    fn page(&self, usual: usize) -> usize {
        if self.input.one_in(8) { self.input.index(8) } else { usual }
    }

    /// The address of a page, or another one in memory, near its end, or anywhere.
    fn address(&self, page: usize) -> u64 {
        let input = self.input;
        match input.below(24) {
            0 => input.number(),
            1 => layout::RAM.get() + MEMORY as u64 - input.below(32),
            2 => layout::RAM.get() + input.below(MEMORY as u64 / 16) * 16,
            _ => layout::RAM.get() + self.page(page) as u64 * 0x1000,
        }
    }

    /// Starts a virtio device as a driver does, mostly.
    fn start_virtio(&mut self) {
        let input = self.input;
        let base = layout::VIRTIO.get() + input.below(3) * layout::VIRTIO_STRIDE;
        for status in [0, 1, 3] {
            self.store_word(base + 0x70, status);
        }
        let optional = if input.one_in(8) { input.number() } else { 0 };
        for (half, features) in [(0, optional), (1, 3)] {
            self.store_word(base + 0x24, half);
            self.store_word(base + 0x20, features);
        }
        self.store_word(base + 0x70, 0xb);
        for queue in 0..2 {
            self.store_word(base + 0x30, queue);
            self.store_word(base + 0x38, input.pick(&[1, 8, 64, input.number()]));
            for (page, register) in [0x80, 0x90, 0xa0].into_iter().enumerate() {
                let ring = self.address(page);
                self.store_word(base + register, ring);
                self.store_word(base + register + 4, ring >> 32);
            }
            self.store_word(base + 0x44, 1);
        }
        self.store_word(base + 0x70, 0xf);
    }

    /// Fills a part of memory with what looks like descriptors and rings, and another with the headers
    /// of requests to a disk.
    fn write_rings(&self) {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        let input = self.input;
        let mut memory = self.memory.0.borrow_mut();
        let anything = |usual| if input.one_in(16) { input.number() } else { usual };
        let start = self.page(0) * 0x1000;
        for (index, descriptor) in memory[start..].chunks_exact_mut(16).take(64).enumerate() {
            // Chains of three, as disks want them: header, data, status.
            let page = if index % 3 == 0 { self.page(4) as u64 } else { input.below(16) } * 0x1000;
            let (length, flags) = input.pick(&[
                [(16, NEXT), (512, NEXT), (1, WRITE)],
                [(16, NEXT), (1024, NEXT | WRITE), (1, WRITE)],
            ])[index % 3];
            let address = anything(layout::RAM.get() + page + input.below(64) * 16);
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&(anything(length) as u32).to_le_bytes());
            descriptor[12..14].copy_from_slice(&(anything(flags) as u16).to_le_bytes());
            descriptor[14..].copy_from_slice(&(anything(index as u64 + 1) as u16).to_le_bytes());
        }
        let start = self.page(4) * 0x1000;
        for header in memory[start..].chunks_exact_mut(16).take(64) {
            header[..8].copy_from_slice(&input.pick(&[0_u64, 1, 1, 4, 8, 11]).to_le_bytes());
            header[8..].copy_from_slice(&input.below(40).to_le_bytes());
        }
        // The index of an available ring that is ahead by a little, with heads of chains behind it.
        let ring = self.page(1) * 0x1000;
        let ahead = input.below(70) as u16;
        memory[ring + 2..ring + 4].copy_from_slice(&ahead.to_le_bytes());
        for head in memory[ring + 4..].chunks_exact_mut(2).take(64) {
            head.copy_from_slice(&(anything(input.below(21) * 3) as u16).to_le_bytes());
        }
    }

    fn notify_virtio(&mut self) {
        let base = layout::VIRTIO.get() + self.input.below(3) * layout::VIRTIO_STRIDE;
        self.store_word(base + 0x50, self.input.below(3));
        for _ in 0..WORK_CALLS {
            if !self.services.has_work() {
                return;
            }
            let woken = self.with_context(|services, context| services.work(context));
            assert!(woken.iter().all(|vcpu| vcpu.index() < VCPUS));
        }
        assert!(!self.services.has_work(), "devices do not come to an end");
    }

    fn call(&mut self) {
        let input = self.input;
        let function = match input.below(8) {
            0 => input.word() as u32,
            1 => 0x8400_0050 + input.below(5) as u32,
            _ => 0x8400_0000 | (input.below(2) as u32) << 30 | input.below(0x18) as u32,
        };
        let vcpu = self.vcpu();
        let exit = match input.below(4) {
            0 => Exit::HostCall { imm: input.number() as u16 },
            _ => Exit::Smccc { function },
        };
        self.exit(vcpu, &exit);
    }

    fn other_exit(&mut self) {
        let input = self.input;
        let access = if input.one_in(2) { Access::Read } else { Access::Write(input.number()) };
        let target = input.number();
        let exit = match input.below(6) {
            0 => Exit::Wait {
                kind: input.pick(&[WaitKind::Interrupt, WaitKind::Event]),
                deadline: input.one_in(2).then_some(target),
            },
            1 => Exit::SysReg {
                reg: input.pick(&[
                    SysReg::ICC_SGI1R_EL1,
                    SysReg::ICC_SGI0R_EL1,
                    SysReg::ICC_DIR_EL1,
                    SysReg::from_iss(input.word() as u32),
                ]),
                access,
            },
            2 => Exit::RipasChange {
                base: Ipa::new(target),
                top: Ipa::new(input.number()),
                to: input.pick(&[Ripas::Empty, Ripas::Ram]),
            },
            3 => Exit::Stage2Fault {
                ipa: Ipa::new(target),
                fetch: input.one_in(2),
                write: input.one_in(2),
            },
            4 => Exit::Psci(input.pick(&[
                PsciNotice::CpuOff,
                PsciNotice::CpuOn { target: input.below(3) },
                PsciNotice::AffinityInfo { target },
                PsciNotice::CpuSuspend,
            ])),
            _ => Exit::Interrupt,
        };
        let vcpu = self.vcpu();
        self.exit(vcpu, &exit);
    }

    /// An entry and an exit, as far as list registers are concerned: the guest takes, ends and
    /// deactivates interrupts as it likes.
    fn enter(&mut self) {
        let vcpu = self.vcpu();
        let image = &mut self.images[vcpu.index()];
        self.services.vgic_mut().flush(vcpu, image);
        for register in &mut image.lrs {
            if self.input.one_in(3) {
                // State, bits 63:62: a guest only moves an interrupt on.
                let state = self.input.below(4) << 62;
                let kept = register.bits() & !(3 << 62);
                *register = crate::vgic::ListRegister::from_bits(kept | state & register.bits());
            }
        }
        let woken = self.services.vgic_mut().sync(vcpu, image);
        assert!(woken.iter().all(|vcpu| vcpu.index() < VCPUS));
        let _ = self.services.vgic().has_pending(vcpu);
    }
}

fn live(input: &Input) {
    let realm = input.one_in(3);
    let block = BlockSpec { image: None, size: DISK as u64, read_only: input.one_in(4) };
    let services = VmServices::new(&ServicesConfig {
        vgic: VgicConfig {
            vcpus: VCPUS,
            list_registers: 2 + input.index(3),
            hardware_ppis: [None; 2],
        },
        realm: realm.then_some(RealmConfig {
            ipa_bits: 40,
            memory: MEMORY as u64,
            conversions: Conversions::Any,
        }),
        uart: Some(Placement { base: UART, intid: layout::UART_INTID }),
        flash: true,
        watchdog_ms: (!realm).then_some(30_000),
        virtio: &[VirtioDevice::Console, VirtioDevice::Block(block), VirtioDevice::Entropy],
        channels: &[],
    });
    let mut guest = Guest {
        input,
        services: Box::new(services),
        memory: Ram::new(MEMORY),
        lines: Lines::default(),
        disks: RamDisks(vec![vec![0; DISK].into()]),
        images: [LrImage::EMPTY; VCPUS],
    };
    guest.memory.0.borrow_mut()[MEMORY / 2..].fill(0x5a);
    for _ in 0..200 {
        match input.below(10) {
            0 => guest.start_virtio(),
            1 | 2 => guest.write_rings(),
            3 | 4 => guest.notify_virtio(),
            5 => guest.call(),
            6 => guest.other_exit(),
            7 => guest.enter(),
            _ => guest.touch_device(),
        }
        if input.one_in(16) {
            let typed = input.bytes(input.index(80));
            let _ = guest.services.console_input(&typed);
        }
    }
    let Guest { mut services, mut lines, .. } = guest;
    services.flush_console(&mut lines);
}

#[test]
fn fuzz_guest() {
    fuzz::run("guests", live);
}
