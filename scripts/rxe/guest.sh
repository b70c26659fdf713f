#!/bin/bash
# Process 1 of the virtual machine once its file system stands: makes the RDMA devices, runs the command, leaves the
# exit code and what the kernel said in the shared folder, and powers off.
set -u
SHARE=/run/quorate
. "$SHARE/config"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

power_off() { # with shell built-ins only: nothing may be read from the host's folder any more
  echo o >/proc/sysrq-trigger
  while :; do :; done
}

echo quorate-guest >/proc/sys/kernel/hostname
ip link set lo up
# Processes that spin would starve the threads that carry packets.
for pid in $(pgrep ksoftirqd); do chrt --fifo --pid 50 "$pid"; done
if ! bash "$CHECKOUT/scripts/rxe/devices.sh" up "$REPLICAS" "$MTU"; then
  echo 'quorate-guest: cannot start: the RDMA devices could not be made (see above)'
  power_off
fi
echo 'quorate-guest: devices are up'

# The two ports (vport<number of the bus>p<number of the port>) carry the command's output. They go through pipes because only one process can hold a port open.
mkfifo /run/stdout /run/stderr
cat /run/stdout >/dev/vport*p1 &
out=$!
cat /run/stderr >/dev/vport*p2 &
err=$!
cd "$CHECKOUT" || power_off
bash "$SHARE/command" </dev/null >/run/stdout 2>/run/stderr
code=$?
# What the command left running keeps the pipes open: it gets a moment to finish what it writes, and no more.
(
  sleep 3
  kill "$out" "$err" 2>/dev/null
) &
wait "$out" "$err"

dmesg >"$SHARE/dmesg"
echo "$code" >"$SHARE/exit"
echo 'quorate-guest: done'
power_off
