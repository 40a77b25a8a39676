#!/bin/sh
# Self test of the Linux guest: processors, timers, interrupts between processors, memory, and the
# virtio devices that the device tree names. Its last line says OK, or which parts failed, and its exit
# code agrees. The argument says how many MiB of free memory to go through, or `all` for three quarters.
failed=

part() {
    name=$1
    shift
    if "$@"; then
        echo "selftest: $name: ok"
    else
        echo "selftest: $name: FAILED"
        failed="$failed $name"
    fi
}

cpus=$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)

all_online() {
    [ "$(grep -c ^processor /proc/cpuinfo)" -eq "$cpus" ]
}

# Count of the interrupts in the lines of /proc/interrupts that match $1, on CPU $2.
interrupts() {
    awk -v column=$(($2 + 2)) "/$1/ { sum += \$column } END { print sum + 0 }" /proc/interrupts
}

spin() {
    turn=0
    while [ "$turn" -lt 5000 ]; do turn=$((turn + 1)); done
}

# A CPU that is busy for several ticks gets at least one timer interrupt.
timers_tick() {
    cpu=0
    while [ "$cpu" -lt "$cpus" ]; do
        before=$(interrupts arch_timer $cpu)
        rounds=0
        while [ "$(interrupts arch_timer $cpu)" -eq "$before" ]; do
            [ "$rounds" -lt 50 ] || return 1
            taskset -c $cpu /bin/selftest spin
            rounds=$((rounds + 1))
        done
        cpu=$((cpu + 1))
    done
}

# Waking a process that waits on another CPU takes an interrupt there: each CPU gets some.
ipis_arrive() {
    [ "$cpus" -gt 1 ] || return 0
    cpu=0
    while [ "$cpu" -lt "$cpus" ]; do
        other=$(((cpu + 1) % cpus))
        before=$(interrupts '^ *IPI[01]:' $cpu)
        rounds=0
        while [ "$(interrupts '^ *IPI[01]:' $cpu)" -eq "$before" ]; do
            [ "$rounds" -lt 50 ] || return 1
            { sleep 0.02; echo; } | taskset -c $cpu cat >/dev/null &
            taskset -c $other sleep 0.05
            wait
            rounds=$((rounds + 1))
        done
        cpu=$((cpu + 1))
    done
}

# Fills free memory with random files and checks what they hold.
memory_holds() {
    mkdir /tmp
    mount -t tmpfs -o size=90% tmpfs /tmp || return 1
    free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    files=$((free * 3 / 4 / 4))
    [ "$most" = all ] || [ "$files" -lt $((most / 4)) ] || files=$((most / 4))
    sums=
    file=0
    while [ "$file" -lt "$files" ]; do
        sum=$(dd if=/dev/urandom bs=1M count=4 2>/dev/null | tee /tmp/$file | md5sum)
        sums="$sums ${sum%% *}"
        file=$((file + 1))
        # Between these lines others are seen to run.
        echo "selftest: $((4 * file)) MiB filled"
    done
    file=0
    for sum in $sums; do
        found=$(md5sum </tmp/$file)
        [ "${found%% *}" = "$sum" ] || return 1
        file=$((file + 1))
    done
    umount /tmp
    [ "$file" -gt 0 ] && echo "selftest: $((4 * file)) of $free MiB of free memory tested"
}

# Every virtio node of the device tree has become a device with a driver.
drivers_bound() {
    nodes=$(ls -d /proc/device-tree/virtio_mmio@* 2>/dev/null | wc -l)
    bound=$(ls -d /sys/bus/virtio/devices/*/driver 2>/dev/null | wc -l)
    [ "$nodes" -eq "$bound" ]
}

# True if there is a virtio device with the ID $1.
has_device() {
    grep -qx "$1" /sys/bus/virtio/devices/*/device 2>/dev/null
}

# The disk is as new, and gives back what is written to it, from the device and not from a cache.
disk_holds() {
    [ -b /dev/vda ] && cmp -s -n 65536 /dev/vda /dev/zero || return 1
    blocks=$(($(cat /sys/block/vda/size) / 128))
    sums=
    for at in 0 $((blocks / 2)) $((blocks - 16)); do
        sum=$(dd if=/dev/urandom bs=64k count=16 2>/dev/null | tee /piece | md5sum)
        dd if=/piece of=/dev/vda bs=64k seek=$at conv=fsync 2>/dev/null || return 1
        sums="$sums $at:${sum%% *}"
    done
    echo 3 >/proc/sys/vm/drop_caches
    for entry in $sums; do
        found=$(dd if=/dev/vda bs=64k count=16 skip="${entry%%:*}" 2>/dev/null | md5sum)
        [ "${found%% *}" = "${entry##*:}" ] || return 1
    done
}

# The entropy device gives bytes, and not the same ones twice.
entropy_flows() {
    case $(cat /sys/class/misc/hw_random/rng_current) in virtio_rng*) ;; *) return 1 ;; esac
    for file in /one /two; do
        dd if=/dev/hwrng of=$file bs=64 count=1 2>/dev/null
        [ "$(wc -c <$file)" -eq 64 ] || return 1
    done
    ! cmp -s /one /two
}

# What is written to the virtio console arrives on the host's, where the test looks for it.
console_writes() {
    echo "selftest: by the virtio console" >/dev/hvc0
}

# The machine's PL031 goes on by itself, near to the time that the kernel took from it, and its alarm
# interrupts.
clock_rings() {
    rtc=/sys/class/rtc/rtc0
    first=$(cat $rtc/since_epoch)
    before=$(clock_interrupts)
    echo +2 >$rtc/wakealarm || return 1
    rounds=0
    while [ "$(clock_interrupts)" -eq "$before" ]; do
        [ "$rounds" -lt 100 ] || return 1
        sleep 0.1
        rounds=$((rounds + 1))
    done
    later=$(($(cat $rtc/since_epoch) - first))
    [ -z "$(cat $rtc/wakealarm)" ] && [ "$later" -ge 2 ] &&
        echo "selftest: $(cat $rtc/name) at $first, alarm after $later s"
}

clock_interrupts() {
    awk '/rtc-pl031/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i; else break } END { print sum + 0 }' /proc/interrupts
}

case $1 in
    spin)
        spin
        exit
        ;;
    clock)
        part clock clock_rings
        exit
        ;;
esac
most=${1:-all}
part cpus all_online
part timers timers_tick
part ipis ipis_arrive
part memory memory_holds
part drivers drivers_bound
if [ -e /sys/class/rtc/rtc0 ]; then part clock clock_rings; fi
if has_device 0x0002; then part disk disk_holds; fi
if has_device 0x0003; then part console console_writes; fi
if has_device 0x0004; then part entropy entropy_flows; fi
if [ -z "$failed" ]; then
    echo "init: self test OK"
else
    echo "init: self test FAILED:$failed"
    exit 1
fi
