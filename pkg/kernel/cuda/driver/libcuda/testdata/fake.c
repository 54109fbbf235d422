// A library with the functions of NVIDIA's driver that package libcuda calls, and one kernel in C. It shows that calls
// arrive with the right arguments, and what happens with a driver that is too old or finds no device. FAKE_VERSION and
// FAKE_COUNT set what it says of itself.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOTAL (1ull << 30)

static int number(const char *name, int otherwise) {
	const char *v = getenv(name);
	return v ? atoi(v) : otherwise;
}

int cuDriverGetVersion(int *v) {
	*v = number("FAKE_VERSION", 12040);
	return 0;
}

static void handler(int s) { _exit(90 + s); }

// As the real driver does, it installs handlers that run on whatever stack there is.
int cuInit(unsigned flags) {
	struct sigaction a = {.sa_handler = handler};
	sigaction(SIGINT, &a, 0);
	sigaction(SIGUSR1, &a, 0);
	return flags != 0 ? 1 : number("FAKE_COUNT", 1) == 0 ? 100 : 0;
}

int cuDeviceGetCount(int *n) {
	*n = number("FAKE_COUNT", 1);
	return 0;
}

int cuDeviceGet(int *d, int number) {
	*d = number;
	return 0;
}

int cuDeviceGetName(char *name, int len, int d) {
	snprintf(name, len, "fake %d", d);
	return 0;
}

int cuDeviceGetUuid(char *uuid, int d) {
	for (int i = 0; i < 16; i++) uuid[i] = i;
	return 0;
}

int cuDeviceTotalMem_v2(size_t *n, int d) {
	*n = TOTAL;
	return 0;
}

int cuDeviceGetAttribute(int *v, int which, int d) {
	switch (which) {
	case 16: *v = 132; return 0;
	case 18: *v = 0; return 0;
	case 75: *v = 9; return 0;
	case 76: *v = 0; return 0;
	case 97: *v = 232448; return 0;
	}
	return 1;
}

static int context;
int cuDevicePrimaryCtxRetain(void **c, int d) {
	*c = &context;
	return 0;
}
static __thread void *current;
int cuCtxSetCurrent(void *c) {
	current = c;
	return 0;
}
int cuCtxSynchronize(void) { return current == &context ? 0 : 201; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }

static size_t used;
int cuMemGetInfo_v2(size_t *free, size_t *total) {
	*free = TOTAL - used;
	*total = TOTAL;
	return 0;
}

int cuMemAlloc_v2(uint64_t *a, size_t n) {
	if (current != &context) return 201;
	if (n > TOTAL - used) return 2;
	size_t *p = malloc(n + 16);
	p[0] = n;
	used += n;
	*a = (uint64_t)(p + 2);
	return 0;
}
int cuMemFree_v2(uint64_t a) {
	size_t *p = (size_t *)a - 2;
	used -= p[0];
	free(p);
	return 0;
}
int cuMemHostAlloc(void **p, size_t n, unsigned flags) {
	*p = malloc(n);
	return flags;
}
int cuMemFreeHost(void *p) {
	free(p);
	return 0;
}

// A handle for other processes names the one that made it, so that a test can play another one.
struct handle {
	uint64_t address, size;
	char filler[44];
	int pid;
};
static struct handle opened;
int cuIpcGetMemHandle(struct handle *h, uint64_t a) {
	memset(h, 0x5a, sizeof *h);
	h->address = a;
	h->size = ((size_t *)a - 2)[0];
	h->pid = getpid();
	return 0;
}
int cuIpcOpenMemHandle_v2(uint64_t *a, struct handle h, unsigned flags) {
	for (unsigned i = 0; i < sizeof h.filler; i++)
		if (h.filler[i] != 0x5a) return 1;
	if (flags != 1 || opened.address) return 1;
	if (h.pid == getpid()) return 201;
	opened = h;
	*a = h.address;
	return 0;
}
int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t a) {
	*base = opened.address;
	*size = opened.size;
	return a != opened.address;
}
int cuIpcCloseMemHandle(uint64_t a) {
	if (!a || a != opened.address) return 1;
	opened.address = 0;
	return 0;
}

// A stream is a list of captured launches and copies; whatever is not captured runs at once.
struct op {
	float *x;
	float by;
	unsigned n;
	void *dst, *src;
	size_t bytes;
};
struct stream {
	int capture, n;
	struct op ops[16];
};

static void perform(struct op *o) {
	if (o->bytes) memcpy(o->dst, o->src, o->bytes);
	for (unsigned i = 0; i < o->n; i++) o->x[i] *= o->by;
}
static int put(struct stream *s, struct op o) {
	if (!s) return 400;
	if (s->capture) s->ops[s->n++] = o;
	else perform(&o);
	return 0;
}

int cuStreamCreate(struct stream **s, unsigned flags) {
	*s = calloc(1, sizeof **s);
	return flags != 1;
}
int cuStreamDestroy_v2(struct stream *s) {
	free(s);
	return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t dst, void *src, size_t n, struct stream *s) {
	return put(s, (struct op){.dst = (void *)dst, .src = src, .bytes = n});
}
int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t n, struct stream *s) {
	return put(s, (struct op){.dst = dst, .src = (void *)src, .bytes = n});
}
int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t n, struct stream *s) {
	return put(s, (struct op){.dst = (void *)dst, .src = (void *)src, .bytes = n});
}
int cuMemsetD8Async(uint64_t dst, unsigned char v, size_t n, struct stream *s) {
	memset((void *)dst, v, n);
	return s ? 0 : 400;
}

static int polls;
int cuEventCreate(void **e, unsigned flags) {
	*e = &polls;
	return flags != 2;
}
int cuEventRecord(void *e, struct stream *s) {
	polls = 3;
	return s && e == &polls ? 0 : 400;
}
int cuEventQuery(void *e) { return polls-- > 0 ? 600 : (polls = 0); }
int cuStreamWaitEvent(struct stream *s, void *e, unsigned flags) {
	polls = 0;
	return s && e == &polls ? flags : 400;
}
int cuEventDestroy_v2(void *e) { return e != &polls; }

int cuModuleLoadDataEx(void **m, const char *image, unsigned n, int *options, void **values) {
	if (strstr(image, ".entry scale")) {
		*m = (void *)1234;
		return 0;
	}
	if (n == 2 && options[0] == 5 && options[1] == 6) snprintf(values[0], (size_t)values[1], "line 2: syntax error");
	return 218;
}
int cuModuleGetFunction(void **f, void *m, const char *name) {
	*f = (void *)5678;
	return m != (void *)1234 ? 400 : strcmp(name, "scale") ? 500 : 0;
}
int cuFuncSetAttribute(void *f, int attribute, int v) { return f != (void *)5678 || attribute != 8; }
int cuModuleUnload(void *m) { return m != (void *)1234; }

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   struct stream *s, void **params, void **extra) {
	if (f != (void *)5678 || bx * by * bz > 1024 || gx * gy * gz == 0 || shared || extra) return 1;
	unsigned n = *(unsigned *)params[2];
	if (n > gx * bx) n = gx * bx;
	return put(s, (struct op){.x = *(float **)params[0], .by = *(float *)params[1], .n = n});
}

int cuStreamBeginCapture_v2(struct stream *s, int mode) {
	s->capture = 1;
	s->n = 0;
	return mode != 1;
}
int cuStreamEndCapture(struct stream *s, struct stream **g) {
	*g = malloc(sizeof **g);
	**g = *s;
	s->capture = 0;
	return 0;
}
int cuGraphInstantiateWithFlags(struct stream **e, struct stream *g, unsigned long long flags) {
	*e = malloc(sizeof **e);
	**e = *g;
	return flags;
}
int cuGraphLaunch(struct stream *e, struct stream *s) {
	for (int i = 0; i < e->n; i++) put(s, e->ops[i]);
	return 0;
}
int cuGraphExecDestroy(struct stream *e) {
	free(e);
	return 0;
}
int cuGraphDestroy(struct stream *g) {
	free(g);
	return 0;
}

int cuGetErrorName(int code, const char **out) {
	static char name[32];
	snprintf(name, sizeof name, "CUDA_ERROR_%d", code);
	*out = name;
	return 0;
}
int cuGetErrorString(int code, const char **out) {
	*out = "as the fake says";
	return 0;
}
