package shard_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// A run reserves what it takes of a GPU before anything is copied there, takes no more, and gives all of it back.
func TestTrain_MemoryOfADevice(t *testing.T) {
	skipRace(t)
	set := deviceSet(t, 0)
	r := newTrainRigOn(t, gradbus.NewMemory(busLimit), set)
	open := tinyOpening(0, 2)
	open.Schedule = "gpipe"
	// With so many tokens a gradient and each moment take more than what else is counted too high.
	open.ConfigJson = bytes.Replace(open.GetConfigJson(), fmt.Appendf(nil, `"vocab_size":%d`, tinyVocab),
		[]byte(`"vocab_size":2048`), 1)
	c := r.train(open)
	for step := uint64(1); step <= 2; step++ {
		chain{c}.step(step)
	}
	d := set.Device()
	// Room for the products that a peak is measured with is much more than what so small a model takes, and is not used
	// here. The set has tables of its own.
	const peak, tables = 3 << 20, 32 << 10
	most := d.Reserved - peak + tables
	for limit := time.Now().Add(time.Minute); d.Weights+d.Workspace > most && time.Now().Before(limit); {
		runtime.GC()
		d = set.Device()
	}
	if used := d.Weights + d.Workspace; used > most || used < most/2 || d.Weights == 0 {
		t.Errorf("a run takes %d bytes of the device and has reserved %d", used, d.Reserved)
	}
	needed := d.Reserved
	inventory := r.describe().GetInventory()
	if got := inventory.GetAccelerators()[0].GetReservedBytes(); got != uint64(needed) {
		t.Errorf("the shard says that %d bytes are reserved, the device %d", got, needed)
	}
	c.end()
	if left := set.Device().Reserved; left != 0 {
		t.Errorf("%d bytes stay reserved", left)
	}
	small := deviceSet(t, needed-1)
	used, _ := small.Use()
	err := newTrainRigOn(t, gradbus.NewMemory(busLimit), small).refused(open)
	want := fmt.Sprintf("reserve %d bytes for a train stage of 2 slots", needed)
	if fault.CodeOf(err) != fault.Exhausted || !strings.Contains(err.Error(), want) {
		t.Errorf("a stage that does not fit: %v", err)
	}
	if now, _ := small.Use(); now != used || small.Device().Reserved != 0 {
		t.Errorf("%d bytes are allocated and %d reserved after a refusal, %d were allocated before", now,
			small.Device().Reserved, used)
	}
}

// A replica of a device that takes over the slots of a lost one reserves what they take, or ends with what is missing.
func TestTrain_AReplicaOnADeviceTakesOver(t *testing.T) {
	skipRace(t)
	bus, set := gradbus.NewMemory(busLimit), deviceSet(t, 0)
	r := newTrainRigOn(t, bus, set)
	open := tinyOpening(0, 2)
	open.Schedule = "gpipe"
	c := r.train(open)
	needed := set.Device().Reserved // by one replica of all slots
	c.end()
	open.Replicas = 2
	c = r.train(open)
	if half := set.Device().Reserved; half >= needed {
		t.Errorf("a replica of half of the slots has reserved %d bytes, one of all slots %d", half, needed)
	}
	alone := tinyStep(1, 0, 1)
	alone.GetStep().Members = []*shardv1.Member{member(0, 0, 2)}
	c.send(alone)
	c.send(tinyBatch(1, 0))
	c.send(tinyBatch(1, 1))
	c.folded()
	if got := set.Device().Reserved; got != needed {
		t.Errorf("a replica that has taken over has reserved %d bytes, want %d", got, needed)
	}
	c.apply(1)
	c.end()
	if left := set.Device().Reserved; left != 0 {
		t.Errorf("%d bytes stay reserved", left)
	}
	small := deviceSet(t, needed-1)
	c = newTrainRigOn(t, bus, small).train(open)
	c.send(alone)
	err := c.fails()
	want := fmt.Sprintf("reserve %d bytes for a train stage of 2 slots", needed)
	if fault.CodeOf(err) != fault.Exhausted || !strings.Contains(err.Error(), want) {
		t.Errorf("a replica that cannot take over: %v", err)
	}
	if left := small.Device().Reserved; left != 0 {
		t.Errorf("%d bytes stay reserved after a refusal", left)
	}
}

// describe returns what the shard says of itself.
func (r *trainRig) describe() *shardv1.DescribeResponse {
	r.t.Helper()
	d, err := r.client.Describe(r.ctx, &shardv1.DescribeRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}
