// NCCL among host threads of one process, with NCCL's rules: ranks that do not match wait until they are
// aborted, a rank that aborts is not missed by the others, two ranks may not share a GPU. Data moves when a
// group ends, in the thread that ends it, through host memory: each rank touches the memory of its own GPU
// only.

#include "tests/support/executor/nccl.h"

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/support/executor/executor.h"

namespace {

struct Parcel {
  std::vector<char> bytes;
  bool taken = false;
};

/// Sends meet receives; broadcasts and gathers have a way of their own, so that they meet in the order of
/// calls.
enum class Way { message, collective };

/// The ranks of one communicator. Everything is guarded by `mutex`.
struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int> devices;  // of the ranks that have come
  std::map<std::tuple<int, int, Way>, std::deque<std::shared_ptr<Parcel>>> on_the_way;  // (from, to)
};

std::mutex registry_mutex;
std::map<int64_t, std::shared_ptr<Clique>> cliques;
std::map<ncclComm_t, std::shared_ptr<ncclComm>> live;
int64_t next_id = 1;
std::atomic<ncclResult_t> health{ncclSuccess};
thread_local std::string last_error;

ncclResult_t refuse(ncclResult_t code, const std::string& why) {
  last_error = why;
  return code;
}

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0, ranks = 1;
  bool aborted = false;
};

namespace {

struct Operation {
  enum Kind { send, receive } kind;
  Way way;
  const void* from;
  void* to;
  size_t bytes;
  int peer;
};

struct Aborted {};

/// What this thread's open group holds.
struct Group {
  int depth = 0;
  std::vector<Operation> operations;
  std::shared_ptr<ncclComm> comm;
  cudaStream_t stream = nullptr;
  bool mixed = false;
};
thread_local Group group;

void exchange(ncclComm& comm, const std::vector<Operation>& operations) {
  std::vector<std::shared_ptr<Parcel>> sent;
  std::unique_lock lock(comm.clique->mutex);
  const auto wait_for = [&](auto ready) {
    comm.clique->changed.wait(lock, [&] { return comm.aborted || ready(); });
    if (comm.aborted) throw Aborted{};
  };
  for (const Operation& o : operations) {
    if (o.kind != Operation::send) continue;
    auto parcel = std::make_shared<Parcel>();
    const char* data = static_cast<const char*>(o.from);
    parcel->bytes.assign(data, data + o.bytes);
    comm.clique->on_the_way[{comm.rank, o.peer, o.way}].push_back(parcel);
    sent.push_back(std::move(parcel));
  }
  comm.clique->changed.notify_all();
  for (const Operation& o : operations) {
    if (o.kind != Operation::receive) continue;
    auto& parcels = comm.clique->on_the_way[{o.peer, comm.rank, o.way}];
    wait_for([&] { return !parcels.empty() && parcels.front()->bytes.size() == o.bytes; });
    memcpy(o.to, parcels.front()->bytes.data(), o.bytes);
    parcels.front()->taken = true;
    parcels.pop_front();
    comm.clique->changed.notify_all();
  }
  for (const auto& parcel : sent) wait_for([&] { return parcel->taken; });
}

std::shared_ptr<ncclComm> find(ncclComm_t comm) {
  const std::lock_guard lock(registry_mutex);
  const auto it = live.find(comm);
  return it == live.end() ? nullptr : it->second;
}

std::shared_ptr<ncclComm> remove(ncclComm_t comm) {
  const std::lock_guard lock(registry_mutex);
  const auto it = live.find(comm);
  if (it == live.end()) return nullptr;
  auto found = std::move(it->second);
  live.erase(it);
  return found;
}

/// Adds to the open group; without one, this is a group.
ncclResult_t add(ncclComm_t handle, cudaStream_t stream, auto&& operations_of) {
  const auto comm = find(handle);
  if (!comm) return refuse(ncclInvalidArgument, "no such communicator");
  ncclGroupStart();
  group.mixed = group.mixed || (group.comm && (group.comm != comm || group.stream != stream));
  group.comm = comm;
  group.stream = stream;
  operations_of(*comm);
  return ncclGroupEnd();
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t code) {
  switch (code) {
    case ncclSuccess:
      return "no error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "internal error";
  }
}

const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(registry_mutex);
  memset(id, 0, sizeof(*id));
  memcpy(id->internal, &next_id, sizeof(next_id));
  ++next_id;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  int64_t number = 0;
  memcpy(&number, id.internal, sizeof(number));
  auto made = std::make_shared<ncclComm>();
  made->rank = rank;
  made->ranks = ranks;
  int device = 0;
  cudaGetDevice(&device);
  {
    const std::lock_guard lock(registry_mutex);
    auto& clique = cliques[number];
    if (!clique) clique = std::make_shared<Clique>();
    made->clique = clique;
    live[made.get()] = made;
  }
  *comm = made.get();
  Clique& clique = *made->clique;
  std::unique_lock lock(clique.mutex);
  clique.devices.push_back(device);
  clique.changed.notify_all();
  clique.changed.wait(lock, [&] { return made->aborted || std::ssize(clique.devices) == ranks; });
  if (made->aborted) return refuse(ncclInternalError, "aborted");
  if (std::count(clique.devices.begin(), clique.devices.end(), device) == 1) return ncclSuccess;
  lock.unlock();
  remove(made.get());
  *comm = nullptr;
  return refuse(ncclInvalidUsage, "Duplicate GPU detected");
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  return remove(comm) ? ncclSuccess : refuse(ncclInvalidArgument, "no such communicator");
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const auto comm = remove(handle);
  if (!comm) return refuse(ncclInvalidArgument, "no such communicator");
  const std::lock_guard lock(comm->clique->mutex);
  comm->aborted = true;
  comm->clique->changed.notify_all();
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  *error = health;
  return find(comm) ? ncclSuccess : refuse(ncclInvalidArgument, "no such communicator");
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group.depth > 0) return ncclSuccess;
  const Group done = std::exchange(group, {});
  if (done.mixed) return refuse(ncclInvalidUsage, "a group of several communicators or streams");
  if (!done.comm) return ncclSuccess;
  try {
    osprey::executor::run_on_device(
        done.stream, [comm = done.comm, operations = done.operations] { exchange(*comm, operations); });
  } catch (const Aborted&) {
    return refuse(ncclInternalError, "aborted");
  }
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, [&](ncclComm&) {
    group.operations.push_back({Operation::send, Way::message, data, nullptr, count, peer});
  });
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, [&](ncclComm&) {
    group.operations.push_back({Operation::receive, Way::message, nullptr, data, count, peer});
  });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return add(comm, stream, [&](ncclComm& c) {
    if (c.rank != root) {
      group.operations.push_back({Operation::receive, Way::collective, nullptr, to, count, root});
      return;
    }
    for (int r = 0; r < c.ranks; ++r)
      group.operations.push_back({Operation::send, Way::collective, from, nullptr, count, r});
    group.operations.push_back({Operation::receive, Way::collective, nullptr, to, count, root});
  });
}

ncclResult_t ncclAllGather(const void* mine, void* all, size_t count, ncclDataType_t, ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm, stream, [&](ncclComm& c) {
    for (int r = 0; r < c.ranks; ++r) {
      group.operations.push_back({Operation::send, Way::collective, mine, nullptr, count, r});
      group.operations.push_back(
          {Operation::receive, Way::collective, nullptr, static_cast<char*>(all) + r * count, count, r});
    }
  });
}

namespace osprey::executor {

void set_nccl_health(NcclHealth h) { health = h == NcclHealth::well ? ncclSuccess : ncclRemoteError; }

}  // namespace osprey::executor
