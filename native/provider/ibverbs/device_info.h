// What can be learnt about a device without opening it, or from sysfs: the driver behind it, and GID tables where the
// library is too old to give them.
#pragma once

#include <infiniband/verbs.h>

#include <string>
#include <vector>

#include "provider/ibverbs/library.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

DeviceInfo describeDevice(const Library& lib, ibv_device* device);

// "rxe", "mlx5", ...: what the kernel says over netlink; else the name of the PCI driver; else "unknown".
std::string deviceDriver(const Library& lib, ibv_device* device);

// The valid entries of a port's GID table by ibv_query_gid_table(3).
std::vector<GidEntry> queryGidTable(const Library& lib, ibv_context* context, int portNum);

// The same from `<devicePath>/ports/<n>/{gids,gid_attrs}`, for libraries that lack that verb.
std::vector<GidEntry> readGidTableFromSysfs(const std::string& devicePath, int portNum, int tableLength);

}  // namespace quorate::ibverbs
