// See devices.h. Providers live as long as the process: contexts may use them until their last thread is gone.
#include "addon/devices.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "addon/arguments.h"

namespace quorate::addon {

namespace {

// One shm provider per directory. The directory names come from the program, so their number is limited.
constexpr size_t kMaxShmDirectories = 1024;

struct Devices {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<Provider>> shmProviders;
  std::unique_ptr<Provider> ibverbs;
  std::vector<std::weak_ptr<Context>> contexts;
  bool exitHandlerInstalled = false;
};

Devices& devices() {
  static auto* instance = new Devices;  // never destroyed: threads may still run when static destructors do
  return *instance;
}

Provider& shmProvider(std::string directory) {
  if (directory.empty()) {
    const char* fromEnvironment = std::getenv("QUORATE_SHM_DIR");
    if (fromEnvironment != nullptr) directory = fromEnvironment;
  }
  Devices& all = devices();
  std::lock_guard<std::mutex> lock(all.mutex);
  std::unique_ptr<Provider>& provider = all.shmProviders[directory];
  if (provider == nullptr) {
    if (all.shmProviders.size() > kMaxShmDirectories) {
      all.shmProviders.erase(directory);
      throw VerbsError("QUORATE_LIMIT", "one process can use at most " + std::to_string(kMaxShmDirectories) +
                                            " different shmDirectory settings");
    }
    ShmOptions options;
    options.directory = directory;
    try {
      provider = makeShmProvider(options);
    } catch (...) {
      all.shmProviders.erase(directory);
      throw;
    }
  }
  return *provider;
}

// A library that was missing is looked for again each time: it may have been installed since.
Provider& ibverbsProvider() {
  Devices& all = devices();
  std::lock_guard<std::mutex> lock(all.mutex);
  if (all.ibverbs == nullptr) all.ibverbs = makeIbverbsProvider();
  return *all.ibverbs;
}

// process.exit() ends the process without destroying the environments, and with other threads still running. Closing
// a context is safe beside threads that use it, and it removes the shm segments and deregisters memory in order, so
// that peers see a departure and not a crash. Runs once, at exit(3).
void closeContextsAtExit() {
  std::vector<std::shared_ptr<Context>> open;
  {
    Devices& all = devices();
    std::lock_guard<std::mutex> lock(all.mutex);
    for (const std::weak_ptr<Context>& entry : all.contexts) {
      if (std::shared_ptr<Context> context = entry.lock()) open.push_back(std::move(context));
    }
    all.contexts.clear();
  }
  for (const std::shared_ptr<Context>& context : open) {
    try {
      context->close();
    } catch (const std::exception&) {
      // The process ends anyway, and the kernel then takes back everything that is left.
    }
  }
  // Destructors of objects that other threads still point to must not run during exit.
  static std::vector<std::shared_ptr<Context>>* const kept = new std::vector<std::shared_ptr<Context>>;
  *kept = std::move(open);
}

void remember(const std::shared_ptr<Context>& context) {
  Devices& all = devices();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.contexts.erase(std::remove_if(all.contexts.begin(), all.contexts.end(),
                                    [](const std::weak_ptr<Context>& entry) { return entry.expired(); }),
                     all.contexts.end());
  all.contexts.push_back(context);
  // Registered after the first device is open, so that it runs before the destructors of what the provider made.
  if (!all.exitHandlerInstalled) {
    if (std::atexit(closeContextsAtExit) != 0) {
      throw VerbsError("QUORATE_SYSTEM", "no room for another exit handler", ENOMEM, "atexit");
    }
    all.exitHandlerInstalled = true;
  }
}

}  // namespace

std::vector<DeviceInfo> listDevices(const std::string& shmDirectory) {
  std::vector<DeviceInfo> list = shmProvider(shmDirectory).listDevices();
  try {
    for (DeviceInfo& device : ibverbsProvider().listDevices()) list.push_back(std::move(device));
  } catch (const VerbsError&) {
    // Not an error here; ibverbsStatus() tells why.
  }
  return list;
}

IbverbsStatus ibverbsStatus() {
  try {
    ibverbsProvider().listDevices();
    return {true, {}, {}};
  } catch (const VerbsError& error) {
    return {false, error.code, error.what()};
  }
}

std::shared_ptr<Context> openDevice(const std::string& name, const std::string& shmDirectory) {
  const auto named = [&](const DeviceInfo& device) { return device.name == name; };
  Provider& shm = shmProvider(shmDirectory);
  const std::vector<DeviceInfo> shmDevices = shm.listDevices();
  std::shared_ptr<Context> context;
  if (std::any_of(shmDevices.begin(), shmDevices.end(), named)) {
    context = shm.openDevice(name);
  } else {
    std::vector<DeviceInfo> all = listDevices(shmDirectory);
    if (std::none_of(all.begin(), all.end(), named)) {
      std::string names;
      for (const DeviceInfo& device : all) names += (names.empty() ? "" : ", ") + device.name;
      const IbverbsStatus status = ibverbsStatus();
      throw VerbsError(
          "QUORATE_NO_DEVICE",
          "there is no device named '" + name + "'; there are: " + (names.empty() ? "none" : names) +
              (status.available ? "" : " (the kernel's RDMA devices cannot be used: " + status.message + ")"));
    }
    context = ibverbsProvider().openDevice(name);
  }
  remember(context);
  return context;
}

}  // namespace quorate::addon
