//! The run loop of a core.

/// Enters the run loop of this core.
pub fn enter() -> ! {
    if crate::arch::percpu::core_index() == 0 {
        crate::println!("nothing to run");
        crate::panic::power_off()
    }
    crate::arch::cpu::park()
}
