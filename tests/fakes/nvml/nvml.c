/* A simulated NVML: the symbols, structures and codes of libnvidia-ml.so.1 that are asked for, over GPUs in a file.
 *
 * The environment's FAKE_NVML names the file, which is read anew at every call, so that a test can change the machine
 * while a program looks at it. Without a file there is no driver. A line is a key and the rest of the line:
 *
 *   driver VERSION             of the loaded driver
 *   calls FILE                 append the name of every call to FILE
 *   fail FUNCTION CODE         the function returns CODE
 *   hang FUNCTION              the function returns when the file no longer says so
 *   crash FUNCTION             the function ends the process by SIGSEGV
 *   gpu                        begins a GPU, to which what follows belongs:
 *     name, uuid TEXT; total, free, reserved BYTES; capability MAJOR MINOR; load PERCENT (none: not supported)
 *     lost CODE                every call with its handle returns CODE, but not the one that gets the handle
 *     process PID BYTES        a process that computes on it; -1 bytes: not told
 *     slots N                  MIG mode is on, with room for N instances
 *     mig SLOT                 begins an instance, to which name, uuid, total, free, reserved, process then belong
 *
 * Values of the codes, structures and buffer sizes are those of nvml.h as pynvml has them. */

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { GPUS = 16, SLOTS = 8, PROCESSES = 64, LENGTH = 256 };

typedef unsigned long long bytes_t;
typedef struct { bytes_t total, free, used; } memory_v1;
typedef struct { unsigned version; bytes_t total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; bytes_t used; unsigned gpu_instance, compute_instance; } process_v2;

typedef struct {
    int present;
    char name[LENGTH], uuid[LENGTH];
    bytes_t total, free, reserved;
    unsigned count;
    process_v2 processes[PROCESSES];
} device;

typedef struct {
    device whole, parts[SLOTS];
    int lost, mig, major, minor, loaded;
    unsigned load;
    unsigned slots;
} gpu;

typedef struct {
    char driver[LENGTH], calls[LENGTH * 4];
    unsigned count;
    gpu gpus[GPUS];
    int code;           /* what `fail` says of the function that is called */
    int hangs, crashes; /* whether `hang` and `crash` name it */
} machine;

static int opened;

/* A handle is 1 + 16 * GPU, plus 1 + slot for a MIG instance: a number that is no pointer to anything. */
typedef void *handle;

static void parse(machine *is, FILE *file, const char *function) {
    char line[LENGTH * 4], key[32], word[LENGTH];
    device *now = NULL;
    gpu *card = NULL;
    long long size;
    int number;
    while (fgets(line, sizeof line, file)) {
        int start = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%31s %n", key, &start) != 1) continue;
        const char *rest = line + start;
        if (!strcmp(key, "driver")) snprintf(is->driver, sizeof is->driver, "%s", rest);
        if (!strcmp(key, "calls")) snprintf(is->calls, sizeof is->calls, "%s", rest);
        if (!strcmp(key, "hang")) is->hangs |= !strcmp(rest, function);
        if (!strcmp(key, "crash")) is->crashes |= !strcmp(rest, function);
        if (!strcmp(key, "fail") && sscanf(rest, "%255s %d", word, &number) == 2 && !strcmp(word, function))
            is->code = number;
        if (!strcmp(key, "gpu") && is->count < GPUS) {
            card = &is->gpus[is->count++];
            now = &card->whole;
            now->present = 1;
        }
        if (!card) continue;
        if (!strcmp(key, "capability")) sscanf(rest, "%d %d", &card->major, &card->minor);
        if (!strcmp(key, "lost")) card->lost = atoi(rest);
        if (!strcmp(key, "load")) card->loaded = 1, card->load = (unsigned)atoi(rest);
        if (!strcmp(key, "slots")) card->mig = 1, card->slots = (unsigned)atoi(rest);
        if (!strcmp(key, "mig")) {
            now = &card->parts[(unsigned)atoi(rest) % SLOTS];
            now->present = 1;
        }
        if (!strcmp(key, "name")) snprintf(now->name, sizeof now->name, "%s", rest);
        if (!strcmp(key, "uuid")) snprintf(now->uuid, sizeof now->uuid, "%s", rest);
        if (!strcmp(key, "total")) now->total = strtoull(rest, NULL, 10);
        if (!strcmp(key, "free")) now->free = strtoull(rest, NULL, 10);
        if (!strcmp(key, "reserved")) now->reserved = strtoull(rest, NULL, 10);
        if (!strcmp(key, "process") && now->count < PROCESSES && sscanf(rest, "%d %lld", &number, &size) == 2)
            now->processes[now->count++] = (process_v2){(unsigned)number, (bytes_t)size, ~0u, ~0u};
    }
}

/* Read the file, do what it says of this function, and return a code for a call that goes no further. */
static int enter(machine *is, const char *function) {
    const char *path = getenv("FAKE_NVML");
    int noted = 0;
    do {
        FILE *file = path ? fopen(path, "r") : NULL;
        memset(is, 0, sizeof *is);
        if (!file) return DRIVER_NOT_LOADED;
        parse(is, file, function);
        fclose(file);
        if (is->calls[0] && !noted) {
            FILE *calls = fopen(is->calls, "a");
            if (calls) fprintf(calls, "%s\n", function), fclose(calls);
            noted = 1;
        }
        if (is->crashes) raise(SIGSEGV);
        if (is->hangs) usleep(10000);
    } while (is->hangs);
    if (is->code) return is->code;
    return opened || !strncmp(function, "nvmlInit", 8) ? SUCCESS : UNINITIALIZED;
}

/* The same for a call with a handle: what it stands for. */
static int enter_with(machine *is, const char *function, handle which, gpu **card, device **found) {
    uintptr_t number = (uintptr_t)which - 1;
    int code = enter(is, function);
    if (code) return code;
    if (!which || number / 16 >= is->count) return INVALID_ARGUMENT;
    *card = &is->gpus[number / 16];
    if ((*card)->lost) return (*card)->lost;
    *found = number % 16 ? &(*card)->parts[number % 16 - 1] : &(*card)->whole;
    return (*found)->present ? SUCCESS : INVALID_ARGUMENT;
}

static int text(const char *from, char *to, unsigned length) {
    if (strlen(from) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

#define ENTER machine is; int code = enter(&is, __func__); if (code) return code
#define ENTER_WITH(which) machine is; gpu *card; device *found; \
    int code = enter_with(&is, __func__, which, &card, &found); if (code) return code

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER;
    opened++;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    ENTER;
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char said[32];
    snprintf(said, sizeof said, "simulated error %d", code);
    return said;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER;
    return text(is.driver, version, length);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER;
    *count = is.count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *found) {
    ENTER;
    if (index >= is.count) return INVALID_ARGUMENT;
    *found = (handle)(uintptr_t)(1 + 16 * index);
    return SUCCESS;
}

int nvmlDeviceGetName(handle which, char *name, unsigned length) {
    ENTER_WITH(which);
    return found->name[0] ? text(found->name, name, length) : NOT_SUPPORTED;
}

int nvmlDeviceGetUUID(handle which, char *uuid, unsigned length) {
    ENTER_WITH(which);
    return text(found->uuid, uuid, length);
}

int nvmlDeviceGetMemoryInfo(handle which, memory_v1 *memory) {
    ENTER_WITH(which);
    *memory = (memory_v1){found->total, found->free, found->total - found->free};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(handle which, memory_v2 *memory) {
    ENTER_WITH(which);
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = found->total;
    memory->reserved = found->reserved;
    memory->free = found->free;
    memory->used = found->total - found->free - found->reserved;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(handle which, int *major, int *minor) {
    ENTER_WITH(which);
    if (found != &card->whole) return INVALID_ARGUMENT; /* of a GPU, not of an instance */
    *major = card->major;
    *minor = card->minor;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(handle which, utilization *rates) {
    ENTER_WITH(which);
    if (found != &card->whole || !card->loaded) return NOT_SUPPORTED;
    *rates = (utilization){card->load, 0};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(handle which, unsigned *count, process_v2 *processes) {
    ENTER_WITH(which);
    unsigned room = *count;
    *count = found->count;
    if (room < found->count) return INSUFFICIENT_SIZE;
    memcpy(processes, found->processes, found->count * sizeof *processes);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(handle which, unsigned *current, unsigned *pending) {
    ENTER_WITH(which);
    if (card->major < 8) return NOT_SUPPORTED; /* before Ampere */
    *current = *pending = (unsigned)card->mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(handle which, unsigned *count) {
    ENTER_WITH(which);
    *count = card->slots;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle which, unsigned index, handle *part) {
    ENTER_WITH(which);
    if (index >= card->slots) return INVALID_ARGUMENT;
    if (!card->parts[index].present) return NOT_FOUND;
    *part = (handle)((uintptr_t)which + 1 + index);
    return SUCCESS;
}
