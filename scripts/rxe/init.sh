#!/bin/busybox sh
# First program in the virtual machine (/init of the initramfs). It puts a file system together and enters it:
#   * the host's root folder, read-only over 9p, under a tmpfs: the guest has the host's programs, and what it writes
#     vanishes;
#   * the checkout, from two disk images (its own files, node_modules), since many small files are slow over 9p;
#   * two folders shared with the host for writing: /run/quorate (what to run, its exit code) and /run/results.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
echo 'quorate-guest: kernel is up'
grep -q quorate.probe /proc/cmdline && echo o >/proc/sysrq-trigger && while :; do :; done

stop() {
  echo "quorate-guest: cannot start: $1"
  echo o >/proc/sysrq-trigger
  while :; do :; done
}

mkdir -p /share /results /host /images/checkout /images/dependencies /write /new
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /share || stop 'the shared folder does not mount'
. /share/config
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none results /results || stop 'the folder of results does not mount'
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || stop 'the root folder does not mount'
mount -t squashfs -o ro /dev/vda /images/checkout || stop 'the image of the checkout does not mount'
mount -t squashfs -o ro /dev/vdb /images/dependencies || stop 'the image of node_modules does not mount'
mount -t tmpfs -o size=75% write /write
mkdir /write/root /write/root-work /write/checkout /write/checkout-work
mount -t overlay -o lowerdir=/host,upperdir=/write/root,workdir=/write/root-work root /new || stop 'no overlay on the root folder'
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t tmpfs tmp /new/tmp
mount -t tmpfs run /new/run
mkdir -p /new/run/quorate /new/run/results /new/lib/modules "/new$CHECKOUT"
mount --bind /share /new/run/quorate
mount --bind /results /new/run/results
mount --bind "/host$KERNEL_MODULES" /new/lib/modules || stop 'the kernel modules do not mount'
mount -t overlay -o lowerdir=/images/checkout:/images/dependencies,upperdir=/write/checkout,workdir=/write/checkout-work \
  checkout "/new$CHECKOUT" || stop 'no overlay on the checkout'
ulimit -l unlimited
ulimit -n 65536
exec chroot /new /bin/bash "$CHECKOUT/scripts/rxe/guest.sh"
