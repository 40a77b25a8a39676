#!/bin/sh
# Process 1 of the Linux guest: says that user space is reached and powers off. With `linger=N` on
# the kernel's command line it stays for N seconds and says one line in each; with `shell` there is
# a shell on the console first; with `selftest` it runs the self test, or with
# `selftest=N` the same on no more than N MiB of its memory; with `log` it says what the
# kernel has logged, which a console that comes with a module has not been told. The network device
# gets the address of `net=ADDRESS/BITS`; with `serve=N` the guest then answers others, which have
# `ask=ADDRESS`, N times. When one of these tests fails it resets, which a scenario with
# `on-reset = "stop"` counts as a failure.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for node in /proc/device-tree/virtio_mmio@* /proc/device-tree/watchdog; do
    [ -e "$node" ] || continue
    for module in $(cat /lib/modules/order); do
        insmod "/lib/modules/$module" || echo "init: no module $module"
    done
    break
done
# A console that came with the modules was not there yet when the kernel opened it for this process.
[ -e /proc/self/fd/1 ] || exec </dev/console >/dev/console 2>&1
if [ -e /dev/watchdog0 ]; then
    watchdog -t 1 /dev/watchdog0
    echo "init: watchdog of $(cat /sys/class/watchdog/watchdog0/timeout) s"
fi
cpus=$(grep -c ^processor /proc/cpuinfo)
echo "init: user space reached: Linux $(uname -r), $cpus CPU, $(grep MemTotal /proc/meminfo)"
linger=0
shell=
selftest=
net=
for word in $(cat /proc/cmdline); do
    case $word in
        linger=*) linger=${word#linger=} ;;
        shell) shell=yes ;;
        selftest) selftest=all ;;
        selftest=*) selftest=${word#selftest=} ;;
        net=*) net=${word#net=} ;;
        log) dmesg ;;
    esac
done
if [ "$net" ]; then
    ip link set lo up
    ip address add "$net" dev eth0
    ip link set eth0 up
fi
if [ "$shell" ]; then
    # A session of its own, whose terminal is the console: the shell has line editing and Ctrl-C.
    setsid -c sh -l </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
fi
failed=
if [ "$selftest" ]; then selftest "$selftest" || failed="$failed selftest"; fi
for word in $(cat /proc/cmdline); do
    case $word in
        ask=*) nettest ask "${word#ask=}" || failed="$failed nettest" ;;
        serve=*) nettest serve "${word#serve=}" || failed="$failed nettest" ;;
    esac
done
if [ "$failed" ]; then
    echo "init: FAILED:$failed"
    reboot -f
fi
second=0
while [ "$second" -lt "$linger" ]; do
    sleep 1
    second=$((second + 1))
    echo "init: $second of $linger s"
done
echo "init: powering off"
poweroff -f
