package router

import (
	"errors"
	"os"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
)

// changeName changes what a name points to, and writes the index of names. change is called with mu held and may
// refuse. mu is free while the file is written, and others see the change already. If the file cannot be written, the
// name points again to what it has pointed to before.
func (s *Service) changeName(name adapterName, change func() error) error {
	l := s.adapters
	l.changing.Lock()
	defer l.changing.Unlock()
	s.mu.Lock()
	before := l.names[name].clone()
	if before != nil { // shards must not forget it before the change is certain
		before.current.kept++
	}
	err := l.damaged
	if err == nil {
		err = change()
	}
	index := l.index()
	s.mu.Unlock()
	refused := err != nil
	if !refused {
		err = l.store.write(index)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !refused {
		l.put(name, before)
	}
	if before != nil {
		before.current.kept--
	}
	s.notifyChange()
	s.poke()
	return err
}

// clone copies what a name points to. n may be nil.
func (n *namedAdapter) clone() *namedAdapter {
	if n == nil {
		return nil
	}
	return &namedAdapter{n.model, n.current, n.since, slices.Clone(n.earlier)}
}

// put makes a name point to what n says, or removes it if n is nil.
func (l *adapters) put(name adapterName, n *namedAdapter) {
	if now := l.names[name]; now != nil {
		now.current.names--
		delete(l.names, name)
	}
	if n != nil {
		n.current.names++
		l.names[name] = n
	}
}

// point makes a name point to an adapter and returns the one that it has pointed to, or nil.
func (l *adapters) point(name adapterName, model string, a *servedAdapter, now time.Time) (former *servedAdapter) {
	n := l.names[name]
	if n == nil {
		n = &namedAdapter{}
		l.names[name] = n
	}
	n.model = model
	if former = n.current; former == a {
		return a
	}
	if former != nil {
		former.names--
		n.remember(former.version())
		l.store.touch(former.dir, now)
	}
	n.forget(a.digest)
	a.names++
	n.current, n.since = a, now
	l.store.touch(a.dir, now)
	return former
}

// remember adds a version to the earlier ones.
func (n *namedAdapter) remember(v adapterVersion) {
	n.forget(v.digest)
	n.earlier = slices.Insert(n.earlier, 0, v)
	n.earlier = n.earlier[:min(len(n.earlier), maxEarlier)]
}

func (n *namedAdapter) forget(digest adapter.Sum) {
	n.earlier = slices.DeleteFunc(n.earlier, func(v adapterVersion) bool { return v.digest == digest })
}

// remove removes a name.
func (l *adapters) remove(name adapterName, now time.Time) *servedAdapter {
	n := l.names[name]
	if n == nil {
		return nil
	}
	delete(l.names, name)
	n.current.names--
	l.store.touch(n.current.dir, now)
	return n.current
}

// index returns what the index of names has to say.
func (l *adapters) index() []indexedName {
	list := l.waiting()
	for key, n := range l.names {
		in := indexedName{Model: key.model, Name: key.name, Since: n.since}
		for _, v := range slices.Insert(slices.Clone(n.earlier), 0, n.current.version()) {
			f := indexedFolder{Digest: v.digest.String(), Dir: v.dir, AnyBase: v.anyBase}
			if v.dir == l.store.path(v.digest) {
				f.Dir = ""
			}
			in.Versions = append(in.Versions, f)
		}
		list = append(list, in)
	}
	slices.SortFunc(list, func(a, b indexedName) int {
		return slices.Compare([]string{a.Model, a.Name}, []string{b.Model, b.Name})
	})
	return list
}

// reserve makes room in the store for an adapter of a size, which counts as arriving until giveBack. It removes nothing
// if that would not be enough.
func (s *Service) reserve(size int64) (giveBack func(), err error) {
	l := s.adapters
	l.changing.Lock()
	defer l.changing.Unlock()
	s.mu.Lock()
	doomed, err := l.makeRoom(size)
	index := l.index()
	l.arriving, l.arrivingBytes = l.arriving+1, l.arrivingBytes+size
	s.mu.Unlock()
	if doomed != "" { // whatever happens now, no name may say that they are there
		err = errors.Join(err, l.store.write(index), os.RemoveAll(doomed))
	}
	giveBack = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		l.arriving, l.arrivingBytes = l.arriving-1, l.arrivingBytes-size
	}
	if err != nil {
		giveBack()
		return nil, err
	}
	return giveBack, nil
}
