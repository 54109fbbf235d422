package shard

import (
	"errors"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// A shard on a device with memory of its own reserves what a span needs there before it loads it. When the device is
// lost, the shard holds nothing any more, ends its pipelines, and takes nothing new: its process has to be replaced.

// accelerator is the device of a shard.
type accelerator = kernel.Accelerator[float32]

// The batches whose workspace is reserved: the router's default, and few rows that need logits.
const (
	workRows   = 512
	workLogits = 64
)

// room is memory of a device that is reserved for a span; nil for spans in the host's memory.
type room struct {
	weights       int64 // until the span is held; then they are among the parts
	kv, workspace int64
	later         int64 // of kv: what is reserved when the spans that this one replaces are gone
	reserved      int64 // of all these, by now
	gone          bool  // the span is unloaded
}

// bytes returns all that is reserved for the span alone, now and later.
func (r *room) bytes() int64 { return r.weights + r.kv + r.workspace }

// devicePart is memory of a device that spans share. Its reservation ends with the last of them, whichever was loaded
// first.
type devicePart struct {
	bytes int64
	users int // spans that are held or retire, and loads that share their weights
}

// freeRoom ends the reservation of what a span has for itself.
func (s *Service) freeRoom(r *room) {
	if r != nil {
		s.device.Unreserve(r.reserved)
		r.reserved = 0
	}
}

// dropRoom ends the reservation of a span, but for weights that others share. The caller holds mu.
func (s *Service) dropRoom(h *held) {
	if h.room != nil && !h.room.gone {
		h.room.gone = true
		s.dropParts(h.stage)
		s.freeRoom(h.room)
	}
}

// reserveAgain reserves the memory of a span that was unloaded and is held again, with the stage that it had. The
// caller holds mu.
func (s *Service) reserveAgain(h, old *held) error {
	if old.room == nil {
		return nil
	}
	h.room = &room{kv: old.room.kv, workspace: old.room.workspace}
	if err := s.reserveFor(h.room, h.room.bytes()); err != nil {
		return err
	}
	added := s.keepParts(h.stage) // nothing, while the load that has failed keeps them
	s.device.Unreserve(-added)
	return nil
}

// keepParts counts a user of the weights of stages, and returns the bytes of those that had none. The caller holds mu.
func (s *Service) keepParts(stages ...*model.Stage[float32]) (added int64) {
	for _, stage := range stages {
		for _, p := range stage.DeviceParts() {
			known := s.parts[p.Of]
			if known == nil {
				known = &devicePart{bytes: p.Bytes}
				s.parts[p.Of] = known
				added += p.Bytes
			}
			known.users++
		}
	}
	return added
}

// dropParts is the end of keepParts, and of the reservation of what has no users left. The caller holds mu.
func (s *Service) dropParts(stages ...*model.Stage[float32]) {
	for _, stage := range stages {
		for _, p := range stage.DeviceParts() {
			known := s.parts[p.Of]
			if known.users--; known.users == 0 {
				delete(s.parts, p.Of)
				s.device.Unreserve(known.bytes)
			}
		}
	}
}

// holdRoom makes parts of the weights of a span that has been loaded. The caller holds mu.
func (s *Service) holdRoom(r *room, stage *model.Stage[float32]) {
	if r == nil {
		return
	}
	added := s.keepParts(stage)
	s.device.Unreserve(r.weights - added) // nothing, unless the count before the load was wrong
	r.reserved -= r.weights
	r.weights = 0
}

// usedOnDevice returns the bytes that are reserved or will be, but for those of adapters. The caller holds mu.
func (s *Service) usedOnDevice() (all int64) {
	for _, p := range s.parts {
		all += p.bytes
	}
	for _, h := range slices.Concat(s.held, s.retiring) {
		all += h.room.bytes()
	}
	for _, l := range s.loads {
		all += l.room.bytes()
	}
	return all + s.trained.Load() + s.ringBytes
}

// reserveRoom reserves the memory of a span with a KV cache of some pages beside what is held of its model, but for
// freed bytes of KV caches that it replaces. It returns nil if the shard has no device with memory of its own.
func (s *Service) reserveRoom(
	files *model.Files, span model.Range, beside []*model.Stage[float32], pages int, freed int64,
) (*room, error) {
	if s.device == nil {
		return nil, nil
	}
	size, err := model.SizeOn(files, span, s.cfg.Kernels, beside, workRows, workLogits, pages)
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, err, "measure layers %v", span)
	}
	if span.Hi == len(files.Spec.Layers) && !files.Spec.Encoder() {
		size.Workspace += 4 * keptSlots * int64(files.Spec.Vocab)
	}
	r := &room{weights: size.Weights, workspace: size.Workspace,
		kv: int64(pages) * kvcache.DefaultPageLen * int64(span.Len()) * files.Spec.KVBytes(s.cfg.Kernels.KV())}
	r.later = min(freed, r.kv)
	return r, s.reserveFor(r, r.bytes()-r.later)
}

// reserveFor adds to what is reserved for a span.
func (s *Service) reserveFor(r *room, bytes int64) error {
	if err := s.device.Reserve(bytes); err != nil {
		return fault.Wrap(fault.Exhausted, err, "reserve %d bytes for weights, %d for the KV cache and %d for "+
			"workspace", r.weights, r.kv, r.workspace)
	}
	r.reserved += bytes
	return nil
}

// reserveLater reserves what has been left out for a span, now that those that it replaces are gone.
func (s *Service) reserveLater(r *room) error {
	if r == nil || r.later == 0 {
		return nil
	}
	later := r.later
	r.later = 0
	return s.reserveFor(r, later)
}

// watch waits for the loss of the device.
func (s *Service) watch() {
	select {
	case <-s.device.Lost():
	case <-s.ctx.Done():
		return
	}
	s.leaveDevice()
	s.training.lose(s.Err())
}

// leaveDevice drops all spans and takes no new ones.
func (s *Service) leaveDevice() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = fault.Wrap(fault.Unavailable, s.device.LostErr(), "compute on %s", s.cfg.Kernels.Name())
	s.log.Error("the device is lost: leave the mesh", "device", s.cfg.Kernels.Name(), "error", s.device.LostErr())
	for _, h := range s.held {
		h.endAll(s.lost)
	}
	for _, h := range s.retiring {
		h.endAll(s.lost)
	}
	s.held = nil
	close(s.failed)
	s.notifyLocked()
}

// Failed returns a channel that is closed when the shard cannot compute any more. It is nil for a shard on processors.
func (s *Service) Failed() <-chan struct{} { return s.failed }

// Err returns why the shard cannot compute any more, or nil.
func (s *Service) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// recovered returns the error of a panic in a kernel. That of a device which is lost is Unavailable, so that the work
// is done elsewhere.
func (s *Service) recovered(doing string, r any) error {
	err, ok := r.(error)
	if s.device != nil && ok {
		if lost := s.device.LostErr(); lost != nil && errors.Is(err, lost) {
			return fault.Wrap(fault.Unavailable, err, "%s", doing)
		}
	}
	return fault.New(fault.Internal, "%s: %v", doing, r)
}

// describeDevice returns what is known of the device.
func describeDevice(d accelerator) []*shardv1.Device {
	if d == nil {
		return nil
	}
	v := d.Device()
	out := &shardv1.Device{
		Name: v.Name, Model: v.Model, Architecture: v.Architecture, TotalBytes: uint64(v.Total),
		FreeBytes: uint64(v.Free), LimitBytes: uint64(v.Limit), WeightsBytes: uint64(v.Weights), KvBytes: uint64(v.KV),
		WorkspaceBytes: uint64(v.Workspace), ReservedBytes: uint64(v.Reserved),
	}
	for _, f := range []struct {
		to    **float64
		value float64
	}{{&out.Utilisation, v.Utilisation}, {&out.Celsius, v.Celsius}, {&out.Watts, v.Watts}} {
		if f.value >= 0 {
			*f.to = &f.value
		}
	}
	if err := d.LostErr(); err != nil {
		out.Lost = err.Error()
	}
	return []*shardv1.Device{out}
}

// deviceMetrics exports what is known of a device. What it does not report has no series.
type deviceMetrics struct {
	device                                    accelerator
	info, memory, busy, celsius, watts, alive *prometheus.Desc
}

func newDeviceMetrics(d accelerator) *deviceMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lamina_device_"+name, help, append([]string{"device"}, labels...), nil)
	}
	return &deviceMetrics{
		device: d,
		info:   desc("info", "Device with memory of its own; the value is 1.", "model", "architecture"),
		memory: desc("memory_bytes", "Memory of the device: total and free as its driver says, the limit of this process, "+
			"and what it has reserved and allocated.", "kind"),
		busy:    desc("utilisation_ratio", "Share of time in which the device computes."),
		celsius: desc("temperature_celsius", "Temperature of the device."),
		watts:   desc("power_watts", "Power of the device."),
		alive:   desc("alive", "1, or 0 when the device is lost."),
	}
}

// Describe implements prometheus.Collector.
func (m *deviceMetrics) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, to) }

// Collect implements prometheus.Collector.
func (m *deviceMetrics) Collect(to chan<- prometheus.Metric) {
	v := m.device.Device()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{v.Name}, labels...)...)
	}
	gauge(m.info, 1, v.Model, v.Architecture)
	for _, kind := range []struct {
		name  string
		bytes int64
	}{{"total", v.Total}, {"free", v.Free}, {"limit", v.Limit}, {"reserved", v.Reserved}, {"weights", v.Weights},
		{"kv", v.KV}, {"workspace", v.Workspace}} {
		gauge(m.memory, float64(kind.bytes), kind.name)
	}
	for d, value := range map[*prometheus.Desc]float64{m.busy: v.Utilisation, m.celsius: v.Celsius, m.watts: v.Watts} {
		if value >= 0 {
			gauge(d, value)
		}
	}
	alive := 1.0
	if m.device.LostErr() != nil {
		alive = 0
	}
	gauge(m.alive, alive)
}
