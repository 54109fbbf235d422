package rpc

// This test is internal because a server of services takes no other room.

import "testing"

// The calls of services are not divided between tenants, so one of them may have all of the room.
func TestBodies_OfServicesAreNotDivided(t *testing.T) {
	for name, c := range map[string]struct {
		room *Bodies
		most int64 // of one tenant, while no other needs any
	}{"public": {NewBodies(MaxBodies), MaxBodies / 2}, "services": {newServicesBodies(), servicesBodies}} {
		first, second := c.room.Body(""), c.room.Body("")
		if !first.Add(SmallBody + c.most) {
			t.Errorf("%s: no room for %d bytes", name, c.most)
		}
		if second.Add(SmallBody + 1) {
			t.Errorf("%s: room for more than %d bytes", name, c.most)
		}
		first.Close()
		if !second.Add(c.most - 1) {
			t.Errorf("%s: no room after the first has ended", name)
		}
		second.Close()
		if c.room.used != 0 || len(c.room.tenant) != 0 {
			t.Errorf("%s: %d bytes are still taken", name, c.room.used)
		}
	}
}
