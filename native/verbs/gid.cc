// GIDs: how they are printed and which one of a port's table a queue pair should use. The choice is the usual stumbling
// block of RoCE (a table holds the same address as RoCE v1 and v2, and link-local ones first), hence one function for
// it, and an error that prints the table.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "verbs/verbs.h"

namespace quorate {
namespace {

bool isZero(const Gid& gid) {
  return gid == Gid{};
}

bool isMappedIpv4(const Gid& gid) {
  static constexpr uint8_t kPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(gid.raw, kPrefix, sizeof(kPrefix)) == 0;
}

bool isLinkLocal(const Gid& gid) {
  return gid.raw[0] == 0xfe && (gid.raw[1] & 0xc0) == 0x80;
}

// Lower is better.
int preference(const Gid& gid) {
  return isMappedIpv4(gid) ? 0 : isLinkLocal(gid) ? 2 : 1;
}

const char* gidTypeName(GidType type) {
  switch (type) {
    case GidType::Ib:
      return "IB";
    case GidType::RoceV1:
      return "RoCE v1";
    case GidType::RoceV2:
      return "RoCE v2";
    case GidType::Shm:
      return "shm";
  }
  return "unknown";
}

std::string printed(const std::vector<GidEntry>& gids) {
  if (gids.empty()) return "the port's GID table is empty";
  std::string text = "the port's GID table is:";
  for (const GidEntry& entry : gids) {
    text += "\n  [" + std::to_string(entry.index) + "] " + entry.gid.toString() + " " + gidTypeName(entry.type);
    if (!entry.netdev.empty()) text += " " + entry.netdev;
  }
  return text;
}

const char* portStateName(PortState state) {
  switch (state) {
    case PortState::Nop:
      return "NOP";
    case PortState::Down:
      return "DOWN";
    case PortState::Init:
      return "INIT";
    case PortState::Armed:
      return "ARMED";
    case PortState::Active:
      return "ACTIVE";
    case PortState::ActiveDefer:
      return "ACTIVE_DEFER";
  }
  return "unknown";
}

}  // namespace

bool Gid::operator==(const Gid& other) const {
  return std::memcmp(raw, other.raw, sizeof(raw)) == 0;
}

std::string Gid::toString() const {
  char text[40];
  std::snprintf(text, sizeof(text), "%02x%02x:%02x%02x:%02x%02x:%02x%02x:%02x%02x:%02x%02x:%02x%02x:%02x%02x", raw[0],
                raw[1], raw[2], raw[3], raw[4], raw[5], raw[6], raw[7], raw[8], raw[9], raw[10], raw[11], raw[12],
                raw[13], raw[14], raw[15]);
  return text;
}

GidEntry chooseGid(const std::vector<GidEntry>& gids, const PortAttributes& port) {
  const bool ethernet = port.linkLayer == "Ethernet";
  const GidEntry* chosen = nullptr;
  for (const GidEntry& entry : gids) {
    if (isZero(entry.gid)) continue;
    if (!ethernet) {
      if (entry.index == 0) chosen = &entry;
      continue;
    }
    if (entry.type != GidType::RoceV2) continue;
    if (chosen == nullptr || preference(entry.gid) < preference(chosen->gid) ||
        (preference(entry.gid) == preference(chosen->gid) && entry.index < chosen->index)) {
      chosen = &entry;
    }
  }
  if (chosen != nullptr) return *chosen;
  const std::string state = std::string("port state ") + portStateName(port.state) + "; ";
  if (ethernet) {
    throw VerbsError("QUORATE_NO_GID",
                     "The port has no RoCE v2 GID (" + state + printed(gids) +
                         "). Bring its network interface up and give it an IPv4 address (ip link set <netdev> up; "
                         "ip address add <address>/<prefix> dev <netdev>), or name a GID index explicitly.");
  }
  throw VerbsError("QUORATE_NO_GID",
                   "The " + (port.linkLayer.empty() ? std::string("unspecified") : port.linkLayer) +
                       " port has no GID at index 0 (" + state + printed(gids) +
                       "). Check that the link is up and, on InfiniBand, that a subnet manager runs.");
}

}  // namespace quorate
