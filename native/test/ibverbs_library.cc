// libibverbs is opened at run time: its absence is explained, and the program does not depend on it.
#include <doctest/doctest.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "provider/ibverbs/device_info.h"
#include "provider/ibverbs/library.h"
#include "verbs/verbs.h"

using namespace quorate;

namespace {

VerbsError openingFails(const std::string& soname) {
  try {
    ibverbs::openLibrary(soname);
  } catch (const VerbsError& error) {
    return error;
  }
  FAIL(soname, " was accepted as libibverbs");
  throw 0;
}

// What the dynamic linker has to find before this program starts: needed libraries and undefined symbols.
std::vector<std::string> dynamicDependencies(const char* path) {
  std::vector<std::string> names;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  struct stat status {};
  REQUIRE(fstat(fd, &status) == 0);
  const auto size = static_cast<size_t>(status.st_size);
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  REQUIRE(mapped != MAP_FAILED);
  const auto* base = static_cast<const char*>(mapped);
  ElfW(Ehdr) header;
  std::memcpy(&header, base, sizeof(header));
  std::vector<ElfW(Shdr)> sections(header.e_shnum);
  std::memcpy(sections.data(), base + header.e_shoff, sections.size() * sizeof(sections[0]));
  for (const ElfW(Shdr) & section : sections) {
    if (section.sh_type != SHT_DYNSYM && section.sh_type != SHT_DYNAMIC) continue;
    const char* strings = base + sections.at(section.sh_link).sh_offset;
    for (size_t at = 0; at < section.sh_size; at += section.sh_entsize) {
      if (section.sh_type == SHT_DYNSYM) {
        ElfW(Sym) symbol;
        std::memcpy(&symbol, base + section.sh_offset + at, sizeof(symbol));
        if (symbol.st_shndx == SHN_UNDEF) names.emplace_back(strings + symbol.st_name);
      } else {
        ElfW(Dyn) entry;
        std::memcpy(&entry, base + section.sh_offset + at, sizeof(entry));
        if (entry.d_tag == DT_NEEDED) names.emplace_back(strings + entry.d_un.d_val);
      }
    }
  }
  munmap(mapped, size);
  return names;
}

}  // namespace

TEST_CASE("a missing libibverbs is explained with what to install") {
  const VerbsError error = openingFails("libibverbs-of-nowhere.so.1");
  CHECK(error.code == "QUORATE_NO_LIBRARY");
  CHECK(error.syscall == "dlopen");
  CHECK(std::string(error.what()).find("libibverbs-of-nowhere.so.1") != std::string::npos);
  CHECK(std::string(error.what()).find("apt-get install libibverbs1") != std::string::npos);
}

TEST_CASE("a library that is not libibverbs is refused by the symbol it lacks") {
  const VerbsError error = openingFails("libc.so.6");
  CHECK(error.code == "QUORATE_NO_LIBRARY");
  CHECK(error.syscall == "dlsym");
  CHECK(std::string(error.what()).find("ibv_get_device_list") != std::string::npos);
}

TEST_CASE("this program starts without libibverbs") {
  const std::vector<std::string> names = dynamicDependencies("/proc/self/exe");
  bool sawLibc = false;
  for (const std::string& name : names) {
    sawLibc |= name == "libc.so.6";
    CAPTURE(name);
    CHECK(name.rfind("ibv_", 0) != 0);
    CHECK(name.rfind("_ibv_", 0) != 0);
    CHECK(name.rfind("libibverbs", 0) != 0);
    CHECK(name.rfind("rdma_", 0) != 0);
    CHECK(name.rfind("librdmacm", 0) != 0);
  }
  CHECK(sawLibc);  // the list is what it claims to be
}

TEST_CASE("GID tables are read from sysfs where the library cannot give them") {
  char pattern[] = "/tmp/quorate-gid-XXXXXX";
  const std::filesystem::path device = mkdtemp(pattern);
  const std::filesystem::path port = device / "ports/2";
  std::filesystem::create_directories(port / "gids");
  std::filesystem::create_directories(port / "gid_attrs/types");
  std::filesystem::create_directories(port / "gid_attrs/ndevs");
  const auto entry = [&](int index, const std::string& gid, const std::string& type, const std::string& netdev) {
    const std::string number = std::to_string(index);
    std::ofstream(port / "gids" / number) << gid << "\n";
    if (!type.empty()) std::ofstream(port / "gid_attrs/types" / number) << type << "\n";
    if (!netdev.empty()) std::ofstream(port / "gid_attrs/ndevs" / number) << netdev << "\n";
  };
  entry(0, "fe80:0000:0000:0000:021b:21ff:fe00:0001", "IB/RoCE v1", "eth0");
  entry(1, "0000:0000:0000:0000:0000:ffff:0a4e:0001", "RoCE v2", "eth0");
  entry(2, "0000:0000:0000:0000:0000:0000:0000:0000", "", "");
  entry(3, "not a gid", "RoCE v2", "eth0");
  entry(4, "fe80:0000:0000:0000:021b:21ff:fe00:0002", "IB/RoCE v1", "");
  entry(5, "fe80:0000:0000:0000:021b:21ff:fe00:0003", "RoCE v2", "beyond the table");

  const std::vector<GidEntry> gids = ibverbs::readGidTableFromSysfs(device.string(), 2, 5);
  std::filesystem::remove_all(device);
  REQUIRE(gids.size() == 3);
  CHECK(gids[0].index == 0);
  CHECK(gids[0].type == GidType::RoceV1);
  CHECK(gids[0].netdev == "eth0");
  CHECK(gids[1].index == 1);
  CHECK(gids[1].type == GidType::RoceV2);
  CHECK(gids[1].gid.toString() == "0000:0000:0000:0000:0000:ffff:0a4e:0001");
  CHECK(gids[2].index == 4);
  CHECK(gids[2].type == GidType::Ib);
}
