// Memory of the ibverbs provider: what it maps, what it refuses, who shares it. Needs no device.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/memory.h"
#include "test/child_process.h"
#include "test/error_code.h"

using namespace quorate;
using ibverbs::MappedMemory;

namespace {

std::string codeOfMap(const MemoryOptions& options) {
  return test::codeOf([&] { MappedMemory::map(options); });
}

MemoryOptions fileOptions(const std::string& path, size_t lengthBytes) {
  MemoryOptions options;
  options.lengthBytes = lengthBytes;
  options.shared = true;
  options.sharedPath = path;
  return options;
}

// A name in /dev/shm that is removed again.
struct ShmFile {
  explicit ShmFile(const char* name) : path(std::string("/dev/shm/quorate-test-") + std::to_string(getpid()) + name) {
    unlink(path.c_str());
  }
  ~ShmFile() { unlink(path.c_str()); }
  const std::string path;
};

}  // namespace

TEST_CASE("memory is page-aligned, zeroed, writable and has the length asked for") {
  MemoryOptions options;
  options.lengthBytes = 10000;
  const auto memory = MappedMemory::map(options);
  CHECK(memory->length() == 10000);
  CHECK(reinterpret_cast<uintptr_t>(memory->data()) % static_cast<size_t>(sysconf(_SC_PAGESIZE)) == 0);
  for (size_t i = 0; i < memory->length(); i++) REQUIRE(memory->data()[i] == 0);
  std::memset(memory->data(), 0xa5, memory->length());
  CHECK(memory->data()[9999] == 0xa5);
}

TEST_CASE("memory is resident as soon as it is there") {
  MemoryOptions options;
  options.lengthBytes = 64 * 4096;
  const auto memory = MappedMemory::map(options);
  std::vector<unsigned char> resident(64);
  REQUIRE(mincore(memory->data(), memory->length(), resident.data()) == 0);
  for (const unsigned char page : resident) REQUIRE((page & 1) == 1);
}

TEST_CASE("closed memory stays mapped for its holders") {
  MemoryOptions options;
  options.lengthBytes = 4096;
  const auto memory = MappedMemory::map(options);
  memory->close();
  memory->close();
  CHECK(memory->closed());
  memory->data()[0] = 7;
  CHECK(memory->data()[0] == 7);
}

TEST_CASE("impossible lengths and contradicting options are refused") {
  MemoryOptions options;
  CHECK(codeOfMap(options) == "QUORATE_OUT_OF_RANGE");
  options.lengthBytes = ibverbs::kMaxMemoryBytes + 1;
  CHECK(codeOfMap(options) == "QUORATE_OUT_OF_RANGE");
  options.lengthBytes = 4096;
  options.shared = true;
  CHECK(codeOfMap(options) == "QUORATE_INVALID_ARGUMENT");
  options.shared = false;
  options.sharedPath = "/dev/shm/quorate-test-unused";
  CHECK(codeOfMap(options) == "QUORATE_INVALID_ARGUMENT");
}

TEST_CASE("a forked child does not share anonymous memory") {
  MemoryOptions options;
  options.lengthBytes = 4096;
  const auto memory = MappedMemory::map(options);
  volatile uint8_t* word = memory->data();
  const pid_t child = test::forkChild([word] {
    signal(SIGSEGV, SIG_DFL);
    return static_cast<int>(word[0]);
  });
  CHECK(test::waitForChild(child) == 256 + SIGSEGV);
}

TEST_CASE("a shared file keeps its bytes after the memory is gone, and belongs to this user alone") {
  const ShmFile file("-keeps");
  {
    const auto memory = MappedMemory::map(fileOptions(file.path, 5000));
    CHECK(memory->length() == 5000);
    std::memcpy(memory->data() + 4990, "last bytes", 10);
    struct stat status {};
    REQUIRE(stat(file.path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
    CHECK(status.st_size == 8192);
    CHECK(status.st_blocks * 512 >= 8192);  // every page is reserved
  }
  const auto memory = MappedMemory::map(fileOptions(file.path, 5000));
  CHECK(std::memcmp(memory->data() + 4990, "last bytes", 10) == 0);
}

TEST_CASE("a shared file has one user at a time, also when that user was killed") {
  const ShmFile file("-lock");
  auto memory = MappedMemory::map(fileOptions(file.path, 4096));
  CHECK(codeOfMap(fileOptions(file.path, 4096)) == "QUORATE_SYSTEM");
  memory.reset();
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = test::forkChild([&] {
    const auto held = MappedMemory::map(fileOptions(file.path, 4096));
    if (write(ready[1], "x", 1) != 1) return 1;
    pause();
    return 0;
  });
  char byte;
  REQUIRE(read(ready[0], &byte, 1) == 1);
  CHECK(codeOfMap(fileOptions(file.path, 4096)) == "QUORATE_SYSTEM");
  kill(child, SIGKILL);
  CHECK(test::waitForChild(child) == 256 + SIGKILL);
  CHECK(codeOfMap(fileOptions(file.path, 4096)) == "");
  close(ready[0]);
  close(ready[1]);
}

TEST_CASE("a shared file of another size, mode, kind or place is refused and left alone") {
  const ShmFile file("-refused");
  MappedMemory::map(fileOptions(file.path, 4096));
  CHECK(codeOfMap(fileOptions(file.path, 8192)) == "QUORATE_INVALID_ARGUMENT");
  REQUIRE(chmod(file.path.c_str(), 0644) == 0);
  CHECK(codeOfMap(fileOptions(file.path, 4096)) == "QUORATE_INVALID_ARGUMENT");
  REQUIRE(chmod(file.path.c_str(), 0600) == 0);
  const ShmFile link("-link");
  REQUIRE(symlink(file.path.c_str(), link.path.c_str()) == 0);
  CHECK(codeOfMap(fileOptions(link.path, 4096)) == "QUORATE_SYSTEM");
  CHECK(codeOfMap(fileOptions("/dev/shm", 4096)) == "QUORATE_SYSTEM");
  CHECK(codeOfMap(fileOptions("/proc/self/comm", 4096)) == "QUORATE_INVALID_ARGUMENT");
  CHECK(codeOfMap(fileOptions(file.path, 4096)) == "");
  struct stat status {};
  REQUIRE(stat(file.path.c_str(), &status) == 0);
  CHECK(status.st_size == 4096);
}

TEST_CASE("a shared file that does not fit is an error and not a crash, and leaves nothing behind") {
  const ShmFile file("-large");
  struct statfs fileSystem {};
  REQUIRE(statfs("/dev/shm", &fileSystem) == 0);
  const size_t freeBytes = fileSystem.f_bavail * static_cast<size_t>(fileSystem.f_bsize);
  // Just too large as well: trying it page by page would take the whole machine's memory before it failed.
  for (const size_t bytes : {freeBytes + (size_t{64} << 20), size_t{1} << 39}) {
    CHECK(codeOfMap(fileOptions(file.path, bytes)) == "QUORATE_SYSTEM");
    CHECK(access(file.path.c_str(), F_OK) != 0);
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they need address space of their own

TEST_CASE("a new shared file that cannot be mapped is not left behind, one that was there is") {
  const ShmFile file("-unmapped");
  const size_t bytes = size_t{64} << 20;
  const auto codeWithoutRoom = [&] {
    const pid_t child = test::forkChild([&] {
      test::limitAddressSpace(bytes / 2);
      return codeOfMap(fileOptions(file.path, bytes)) == "QUORATE_SYSTEM" ? 0 : 1;
    });
    return test::waitForChild(child);
  };
  CHECK(codeWithoutRoom() == 0);
  CHECK(access(file.path.c_str(), F_OK) != 0);
  MappedMemory::map(fileOptions(file.path, bytes));
  CHECK(codeWithoutRoom() == 0);
  CHECK(access(file.path.c_str(), F_OK) == 0);
}

#endif

TEST_CASE("huge pages that are not to be had are an error that says how to get them") {
  MemoryOptions options;
  options.lengthBytes = size_t{1} << 38;
  options.hugePages = true;
  try {
    MappedMemory::map(options);
    FAIL("256 GiB of huge pages were mapped");
  } catch (const VerbsError& error) {
    // Kernels without huge pages say so by another code.
    CHECK((error.code == "QUORATE_SYSTEM" || error.code == "QUORATE_UNSUPPORTED"));
    if (error.code == "QUORATE_SYSTEM") CHECK(std::string(error.what()).find("vm.nr_hugepages") != std::string::npos);
  }
}

TEST_CASE("ENOMEM under a locked-memory limit names the limit, the size and the remedies") {
  const pid_t child = test::forkChild([] {
    const rlimit limit{65536, 65536};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 1;
    // The limit does not bind a process with CAP_IPC_LOCK; becoming another user drops it.
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 2;
    try {
      ibverbs::throwPinningError("ibv_reg_mr", ENOMEM, "Registering memory", 67108864, "");
    } catch (const VerbsError& error) {
      const std::string message = error.what();
      if (error.code != "QUORATE_MEMLOCK" || error.errnum != ENOMEM || error.syscall != "ibv_reg_mr") return 3;
      for (const char* part : {"67108864", "65536", "LimitMEMLOCK", "limits.conf", "ulimit -l"}) {
        if (message.find(part) == std::string::npos) return 4;
      }
      return 0;
    }
    return 5;
  });
  CHECK(test::waitForChild(child) == 0);
}

TEST_CASE("other failures of pinning are not blamed on the limit") {
  const auto codeFor = [](int errnum) {
    try {
      ibverbs::throwPinningError("ibv_reg_mr", errnum, "Registering memory", 4096, "");
    } catch (const VerbsError& error) {
      CHECK(error.errnum == errnum);
      return error.code;
    }
    return std::string();
  };
  CHECK(codeFor(EFAULT) == "QUORATE_SYSTEM");
  const pid_t child = test::forkChild([&] {
    const rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 0;  // not permitted here; nothing to look at
    return codeFor(ENOMEM) == "QUORATE_SYSTEM" ? 0 : 1;
  });
  CHECK(test::waitForChild(child) == 0);
}
