// See device_info.h.
#include "provider/ibverbs/device_info.h"

#include <endian.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/rdma_netlink.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {
namespace {

constexpr int kMaxGidTableLength = 4096;  // per port; real tables have at most some hundred entries

const char* nodeTypeName(int type) {
  switch (type) {
    case IBV_NODE_CA:
      return "CA";
    case IBV_NODE_SWITCH:
      return "SWITCH";
    case IBV_NODE_ROUTER:
      return "ROUTER";
    case IBV_NODE_RNIC:
      return "RNIC";
    case IBV_NODE_USNIC:
      return "USNIC";
    case IBV_NODE_USNIC_UDP:
      return "USNIC_UDP";
    default:
      return "UNSPECIFIED";
  }
}

const char* transportName(int transport) {
  switch (transport) {
    case IBV_TRANSPORT_IB:
      return "InfiniBand";
    case IBV_TRANSPORT_IWARP:
      return "iWARP";
    case IBV_TRANSPORT_USNIC:
      return "usNIC";
    case IBV_TRANSPORT_USNIC_UDP:
      return "usNIC UDP";
    default:
      return "unspecified";
  }
}

const char* driverName(uint64_t driverId) {
  static constexpr const char* kNames[] = {
      nullptr, "mlx5", "mlx4",  "cxgb3", "cxgb4", "mthca", "bnxt_re", "ocrdma", "nes",   "irdma", "vmw_pvrdma",
      "qedr",  "hns",  "usnic", "rxe",   "hfi1",  "qib",   "efa",     "siw",    "erdma", "mana",
  };
  static_assert(RDMA_DRIVER_MLX5 == 1 && RDMA_DRIVER_IRDMA == 9 && RDMA_DRIVER_RXE == 14 && RDMA_DRIVER_ERDMA == 19);
  return driverId < sizeof(kNames) / sizeof(kNames[0]) ? kNames[driverId] : nullptr;
}

// Asks the kernel which driver serves the character device of an RDMA device (RDMA_NLDEV_CMD_GET_CHARDEV), as
// libibverbs does to choose its own provider library. Nothing if the kernel does not say.
std::optional<uint64_t> askDriverId(uint32_t deviceIndex) {
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_RDMA);
  if (fd < 0) return std::nullopt;
  const timeval timeout{0, 200'000};  // a kernel that answers does so at once
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));

  struct {
    nlmsghdr header;
    nlattr indexHeader;
    uint32_t index;
    nlattr typeHeader;
    char type[8];
  } request{};
  static_assert(sizeof(request) == sizeof(nlmsghdr) + 8 + 12);
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_GET_CHARDEV);
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.header.nlmsg_seq = 1;
  request.indexHeader = {sizeof(nlattr) + sizeof(uint32_t), RDMA_NLDEV_ATTR_DEV_INDEX};
  request.index = deviceIndex;
  request.typeHeader = {sizeof(nlattr) + sizeof("uverbs"), RDMA_NLDEV_ATTR_CHARDEV_TYPE};
  std::memcpy(request.type, "uverbs", sizeof("uverbs"));

  std::optional<uint64_t> driverId;
  alignas(nlmsghdr) char buffer[4096];
  const ssize_t received =
      send(fd, &request, sizeof(request), 0) == sizeof(request) ? recv(fd, buffer, sizeof(buffer), 0) : -1;
  ::close(fd);
  if (received < static_cast<ssize_t>(sizeof(nlmsghdr))) return std::nullopt;
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
  if (header->nlmsg_type != request.header.nlmsg_type || header->nlmsg_len > static_cast<size_t>(received)) {
    return std::nullopt;
  }
  size_t at = NLMSG_HDRLEN;
  while (at + sizeof(nlattr) <= header->nlmsg_len) {
    nlattr attribute;
    std::memcpy(&attribute, buffer + at, sizeof(attribute));
    if (attribute.nla_len < sizeof(nlattr) || at + attribute.nla_len > header->nlmsg_len) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) == RDMA_NLDEV_ATTR_UVERBS_DRIVER_ID) {
      const size_t size = attribute.nla_len - sizeof(nlattr);
      uint64_t value64 = 0;
      uint32_t value32 = 0;
      if (size == sizeof(value64)) {
        std::memcpy(&value64, buffer + at + sizeof(nlattr), size);
        driverId = value64;
      } else if (size == sizeof(value32)) {
        std::memcpy(&value32, buffer + at + sizeof(nlattr), size);
        driverId = value32;
      }
    }
    at += NLA_ALIGN(attribute.nla_len);
  }
  return driverId;
}

// The content of a small sysfs file without the final newline; nothing if it cannot be read (sysfs answers EINVAL for
// entries of a GID table that are not in use).
std::optional<std::string> readSmallFile(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return std::nullopt;
  char text[256];
  const size_t length = std::fread(text, 1, sizeof(text), file);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return std::nullopt;
  std::string content(text, length);
  while (!content.empty() && content.back() == '\n') content.pop_back();
  return content;
}

bool parseGid(const std::string& text, Gid* gid) {
  unsigned words[8];
  char rest = 0;
  if (std::sscanf(text.c_str(), "%4x:%4x:%4x:%4x:%4x:%4x:%4x:%4x%c", &words[0], &words[1], &words[2], &words[3],
                  &words[4], &words[5], &words[6], &words[7], &rest) != 8) {
    return false;
  }
  for (int i = 0; i < 8; i++) {
    gid->raw[2 * i] = static_cast<uint8_t>(words[i] >> 8);
    gid->raw[2 * i + 1] = static_cast<uint8_t>(words[i]);
  }
  return true;
}

}  // namespace

std::string deviceDriver(const Library& lib, ibv_device* device) {
  if (lib.getDeviceIndex != nullptr) {
    const int index = lib.getDeviceIndex(device);
    if (index >= 0) {
      const std::optional<uint64_t> driverId = askDriverId(static_cast<uint32_t>(index));
      const char* name = driverId ? driverName(*driverId) : nullptr;
      if (name != nullptr) return name;
    }
  }
  char target[512];
  const std::string link = std::string(device->ibdev_path) + "/device/driver";
  const ssize_t length = readlink(link.c_str(), target, sizeof(target) - 1);
  if (length <= 0) return "unknown";
  const std::string path(target, static_cast<size_t>(length));
  return path.substr(path.rfind('/') + 1);
}

DeviceInfo describeDevice(const Library& lib, ibv_device* device) {
  DeviceInfo info;
  info.name = lib.getDeviceName(device);
  info.provider = "ibverbs";
  info.driver = deviceDriver(lib, device);
  info.nodeType = nodeTypeName(device->node_type);
  info.transport = transportName(device->transport_type);
  info.nodeGuid = be64toh(lib.getDeviceGuid(device));
  return info;
}

std::vector<GidEntry> queryGidTable(const Library& lib, ibv_context* context, int portNum) {
  ibv_port_attr port{};
  int errnum = lib.queryPortAttributes(context, static_cast<uint8_t>(portNum), &port);
  const std::string device = lib.getDeviceName(context->device);
  if (errnum != 0) {
    throwSystemError("ibv_query_port", errnum, "Querying port " + std::to_string(portNum) + " of " + device, "");
  }
  const int tableLength = std::clamp(port.gid_tbl_len, 0, kMaxGidTableLength);
  if (lib.queryGidTable == nullptr) {
    return readGidTableFromSysfs(context->device->ibdev_path, portNum, tableLength);
  }
  ibv_device_attr attributes{};
  errnum = lib.queryDevice(context, &attributes);
  if (errnum != 0) throwSystemError("ibv_query_device", errnum, "Querying the device " + device, "");
  // The verb returns the entries of all ports; a buffer that is too small is an error.
  size_t capacity = 0;
  for (int number = 1; number <= attributes.phys_port_cnt; number++) {
    ibv_port_attr one{};
    if (lib.queryPortAttributes(context, static_cast<uint8_t>(number), &one) == 0) {
      capacity += static_cast<size_t>(std::clamp(one.gid_tbl_len, 0, kMaxGidTableLength));
    }
  }
  std::vector<ibv_gid_entry> raw(std::max<size_t>(capacity, 1));
  const ssize_t count = lib.queryGidTable(context, raw.data(), raw.size(), 0, sizeof(ibv_gid_entry));
  if (count < 0) {
    // Kernels before 5.10 lack the query, and the library's own emulation needs the same sysfs files.
    return readGidTableFromSysfs(context->device->ibdev_path, portNum, tableLength);
  }
  std::vector<GidEntry> entries;
  for (size_t i = 0; i < static_cast<size_t>(count) && i < raw.size(); i++) {
    if (raw[i].port_num != static_cast<uint32_t>(portNum)) continue;
    GidEntry entry;
    entry.index = static_cast<int>(raw[i].gid_index);
    std::memcpy(entry.gid.raw, raw[i].gid.raw, sizeof(entry.gid.raw));
    entry.type = static_cast<GidType>(raw[i].gid_type);
    char name[IF_NAMESIZE];
    if (raw[i].ndev_ifindex != 0 && if_indextoname(raw[i].ndev_ifindex, name) != nullptr) entry.netdev = name;
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const GidEntry& a, const GidEntry& b) { return a.index < b.index; });
  return entries;
}

std::vector<GidEntry> readGidTableFromSysfs(const std::string& devicePath, int portNum, int tableLength) {
  const std::string port = devicePath + "/ports/" + std::to_string(portNum);
  std::vector<GidEntry> entries;
  for (int index = 0; index < std::min(tableLength, kMaxGidTableLength); index++) {
    const std::string number = std::to_string(index);
    const std::optional<std::string> gid = readSmallFile(port + "/gids/" + number);
    GidEntry entry;
    entry.index = index;
    if (!gid || !parseGid(*gid, &entry.gid) || entry.gid == Gid{}) continue;
    // "RoCE v2" or "IB/RoCE v1"; the latter on an InfiniBand port means IB, and there is no netdev.
    const std::string type = readSmallFile(port + "/gid_attrs/types/" + number).value_or("");
    entry.netdev = readSmallFile(port + "/gid_attrs/ndevs/" + number).value_or("");
    entry.type = type == "RoCE v2" ? GidType::RoceV2 : entry.netdev.empty() ? GidType::Ib : GidType::RoceV1;
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace quorate::ibverbs
