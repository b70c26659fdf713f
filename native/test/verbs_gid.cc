// Printing of GIDs, and the choice of one.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "verbs/verbs.h"

using namespace quorate;

namespace {

Gid ipv4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return Gid{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d}};
}
Gid linkLocal(uint8_t last) {
  return Gid{{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last}};
}
Gid global(uint8_t last) {
  return Gid{{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last}};
}

PortAttributes port(const char* linkLayer) {
  PortAttributes attributes;
  attributes.linkLayer = linkLayer;
  attributes.state = PortState::Active;
  return attributes;
}

std::string refusal(const std::vector<GidEntry>& gids, const PortAttributes& attributes) {
  try {
    chooseGid(gids, attributes);
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_NO_GID");
    return error.what();
  }
  FAIL("a GID was chosen");
  return "";
}

}  // namespace

TEST_CASE("a GID is printed as ibv_devinfo prints it") {
  CHECK(linkLocal(0x2a).toString() == "fe80:0000:0000:0000:0000:0000:0000:002a");
  CHECK(ipv4(10, 78, 0, 1).toString() == "0000:0000:0000:0000:0000:ffff:0a4e:0001");
}

TEST_CASE("on Ethernet the RoCE v2 GID of an IPv4 address is chosen") {
  const std::vector<GidEntry> gids = {
      {0, linkLocal(1), GidType::RoceV1, "v0"},      {1, linkLocal(1), GidType::RoceV2, "v0"},
      {2, global(1), GidType::RoceV2, "v0"},         {3, ipv4(10, 0, 0, 1), GidType::RoceV1, "v0"},
      {4, ipv4(10, 0, 0, 1), GidType::RoceV2, "v0"}, {5, ipv4(10, 0, 0, 2), GidType::RoceV2, "v0"}};
  CHECK(chooseGid(gids, port("Ethernet")).index == 4);
}

TEST_CASE("the choice does not depend on the order of the table") {
  const std::vector<GidEntry> gids = {{9, ipv4(10, 0, 0, 2), GidType::RoceV2, ""},
                                      {4, ipv4(10, 0, 0, 1), GidType::RoceV2, ""},
                                      {1, linkLocal(1), GidType::RoceV2, ""}};
  CHECK(chooseGid(gids, port("Ethernet")).index == 4);
}

TEST_CASE("without an IPv4 address a global IPv6 GID is chosen, and a link-local one last") {
  CHECK(chooseGid({{0, linkLocal(1), GidType::RoceV2, ""}, {3, global(1), GidType::RoceV2, ""}}, port("Ethernet"))
            .index == 3);
  CHECK(chooseGid({{0, linkLocal(1), GidType::RoceV1, ""}, {1, linkLocal(1), GidType::RoceV2, ""}}, port("Ethernet"))
            .index == 1);
}

TEST_CASE("on InfiniBand and on shared memory entry 0 is chosen") {
  CHECK(chooseGid({{0, linkLocal(1), GidType::Ib, ""}, {1, global(2), GidType::Ib, ""}}, port("InfiniBand")).index ==
        0);
  CHECK(chooseGid({{0, global(7), GidType::Shm, ""}}, port("SharedMemory")).index == 0);
}

TEST_CASE("a port without a usable GID is refused with its table") {
  const std::string message =
      refusal({{0, ipv4(10, 0, 0, 1), GidType::RoceV1, "eth3"}, {1, Gid{}, GidType::RoceV2, ""}}, port("Ethernet"));
  CHECK(message.find("0000:0000:0000:0000:0000:ffff:0a00:0001") != std::string::npos);
  CHECK(message.find("RoCE v1") != std::string::npos);
  CHECK(message.find("eth3") != std::string::npos);
  CHECK(message.find("ACTIVE") != std::string::npos);
  CHECK(refusal({}, port("Ethernet")).find("empty") != std::string::npos);
  CHECK(refusal({{1, global(1), GidType::Ib, ""}}, port("InfiniBand")).find("index 0") != std::string::npos);
}
