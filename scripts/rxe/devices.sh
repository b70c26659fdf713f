#!/bin/bash
# Makes and removes RDMA devices in software (SoftRoCE, "rxe"). It is used inside the virtual machine, and on a machine
# whose own kernel has the module.
#
#   devices.sh up REPLICAS MTU     rxe0 on a dummy interface (reaches only itself), and b0 .. b<REPLICAS-1>
#   devices.sh down                removes what "up" made and restores the settings it changed
#
# Device bN sits on interface vN with address 10.78.0.<N+1>; vN is one end of a veth pair, the other end, pN, is a port
# of the bridge qbr0. All of it is in one network namespace, the only kind that rxe knows, so the kernel must be told
# that packets between its own addresses may arrive on an interface (accept_local, rp_filter, arp_*). Neighbours are
# entered by hand: a queue pair that goes to RTR would otherwise block on address resolution.
set -euo pipefail

STATE=/run/quorate-rxe-devices

# What "down" has to undo, one entry per line, in the order in which it was done.
remember() { echo "$*" >>"$STATE"; }

set_sysctl() {
  local file=/proc/sys/${1//.//}
  remember sysctl "$1" "$(tr '\t' ' ' <"$file")"
  echo "$2" >"$file"
}

add_link() {
  ip link add "$@"
  remember link "$1"
}

add_rxe() { # device, interface
  rdma link add "$1" type rxe netdev "$2"
  remember device "$1"
}

address_of() { echo "10.78.0.$(($1 + 1))"; }
hardware_address_of() { printf '02:71:72:6d:00:%02x' "$1"; }
link_local_of() { printf 'fe80::71:72ff:fe6d:%x' "$1"; }

up() {
  local replicas=$1 mtu=$2 replica peer module
  if [ -e "$STATE" ]; then
    echo "devices.sh: $STATE exists, so devices of an earlier run are still there; run: $0 down" >&2
    exit 1
  fi
  # A dummy interface of the module's own making would be left behind.
  for module in rdma_rxe ib_uverbs rdma_ucm 'dummy numdummies=0' veth bridge; do
    # shellcheck disable=SC2086
    [ -d "/sys/module/${module%% *}" ] || modprobe $module 2>/dev/null || {
      echo "devices.sh: kernel module ${module%% *} is missing in kernel $(uname -r)" >&2
      exit 1
    }
  done
  : >"$STATE"
  set_sysctl net.ipv4.conf.all.accept_local 1
  set_sysctl net.ipv4.conf.default.accept_local 1
  set_sysctl net.ipv4.conf.all.rp_filter 0
  set_sysctl net.ipv4.conf.default.rp_filter 0
  set_sysctl net.ipv4.conf.all.arp_ignore 1
  set_sysctl net.ipv4.conf.all.arp_announce 2
  set_sysctl net.ipv6.conf.default.accept_dad 0
  # One READ of 1 MiB puts more packets into the queue of a veth than the default lets in.
  set_sysctl net.core.netdev_max_backlog 100000

  add_link qrx0 type dummy
  ip address add 10.77.0.1/32 dev qrx0
  ip link set qrx0 up
  add_rxe rxe0 qrx0
  [ "$replicas" -gt 0 ] || return 0

  add_link qbr0 mtu "$mtu" type bridge stp_state 0 mcast_snooping 0
  ip link set qbr0 up
  for ((replica = 0; replica < replicas; replica++)); do
    add_link "v$replica" address "$(hardware_address_of $replica)" mtu "$mtu" type veth peer name "p$replica" mtu "$mtu"
    ip link set "p$replica" master qbr0 up
    ip link set "v$replica" up
    ip address add "$(address_of $replica)/24" dev "v$replica"
    add_rxe "b$replica" "v$replica"
  done
  for ((replica = 0; replica < replicas; replica++)); do
    for ((peer = 0; peer < replicas; peer++)); do
      [ $peer -ne $replica ] || continue
      echo "neigh replace $(address_of $peer) lladdr $(hardware_address_of $peer) dev v$replica nud permanent"
      echo "neigh replace $(link_local_of $peer) lladdr $(hardware_address_of $peer) dev v$replica nud permanent"
    done
  done | ip -batch -
}

down() {
  [ -e "$STATE" ] || return 0
  local kind name value
  tac "$STATE" | while read -r kind name value; do
    case $kind in
      device) rdma link delete "$name" ;;
      link) ip link delete "$name" ;;
      sysctl) echo "$value" >"/proc/sys/${name//.//}" ;;
    esac || echo "devices.sh: could not undo: $kind $name $value" >&2
  done
  rm -f "$STATE"
}

case ${1:-} in
  up) up "$2" "$3" ;;
  down) down ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
