// The providers of this process, and what it does with open devices when it exits.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "verbs/verbs.h"

namespace quorate::addon {

struct IbverbsStatus {
  bool available = false;
  std::string code, message;
};

std::vector<DeviceInfo> listDevices(const std::string& shmDirectory);
IbverbsStatus ibverbsStatus();
// QUORATE_NO_DEVICE with the names of the devices there are.
std::shared_ptr<Context> openDevice(const std::string& name, const std::string& shmDirectory);

}  // namespace quorate::addon
