package deploy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestDeployment_RouteSharesByKey(t *testing.T) {
	open := map[string]bool{"a": true, "b": true}
	isOpen := func(digest string) bool { return open[digest] }
	d := &deploy.Deployment{Name: "chat", Live: &deploy.Version{Digest: "a"}, Next: &deploy.Version{Digest: "b"}}
	count := func() (n int) {
		for i := range 20000 {
			key := fmt.Sprintf("request-%d", i)
			got := d.Route(key, isOpen)
			if again := d.Route(key, isOpen); got != again {
				t.Fatalf("%s goes to %s and to %s", key, got, again)
			}
			if got == "b" {
				n++
			}
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("a version that is being loaded takes %d requests", n)
	}
	d.Next.Canary = true
	for _, share := range []float64{0.05, 0.5, 0.01} {
		d.Canary = share
		if n := float64(count()); math.Abs(n/20000-share) > 4*math.Sqrt(share/20000) {
			t.Errorf("a share of %v takes %v of 20000 requests", share, n)
		}
	}
	if d.Canary = 0; count() != 20000 {
		t.Error("without a share the new version does not take all requests")
	}
	d.Canary = 0.05
	if open["b"] = false; count() != 0 {
		t.Error("a canary without a pipeline takes requests")
	}
	if open["a"], open["b"] = false, true; count() != 20000 {
		t.Error("requests wait for a live version without a pipeline beside a canary that has one")
	}
}

func TestJudge_ComparesWithTheLiveVersion(t *testing.T) {
	d := &deploy.Deployment{Name: "chat", Live: &deploy.Version{Digest: "a"},
		Next: &deploy.Version{Digest: "b", Canary: true}}
	for _, c := range []struct {
		live, liveFailed, next, nextFailed int
		bad                                bool
	}{
		{0, 0, 2, 2, false}, // too few to say anything
		{0, 0, 3, 3, true},
		{100, 0, 100, 0, false},
		{100, 0, 100, 3, false}, // fewer than 5 % more
		{100, 0, 60, 3, true},
		{100, 50, 100, 52, false}, // all fail, so the version is not the cause
		{100, 50, 100, 56, true},
	} {
		j := deploy.NewJudge()
		for i := range c.live {
			j.Ended("a", i < c.liveFailed, 0)
		}
		for i := range c.next {
			j.Ended("b", i < c.nextFailed, 0)
		}
		if got := j.Verdict(d); (got != "") != c.bad {
			t.Errorf("%+v: the verdict is %q", c, got)
		}
		j.Forget(func(digest string) bool { return digest == "a" })
		if got := j.Verdict(d); got != "" {
			t.Errorf("%+v: the verdict is %q over what was forgotten", c, got)
		}
	}
}

func TestState_DeployNamesWhatIsWrong(t *testing.T) {
	fine := deploy.Version{Digest: "a", Model: "m"}
	for field, try := range map[string]func(*deploy.State) error{
		"name": func(s *deploy.State) error { return s.Deploy("", deploy.Spec{}, fine, nil) },
		"model": func(s *deploy.State) error {
			return s.Deploy("n", deploy.Spec{}, deploy.Version{Digest: strings.Repeat("x", 300)}, nil)
		},
		"replicas": func(s *deploy.State) error { return s.Deploy("n", deploy.Spec{Replicas: -1}, fine, nil) },
		"canary":   func(s *deploy.State) error { return s.Deploy("n", deploy.Spec{Canary: math.NaN()}, fine, nil) },
		"idle": func(s *deploy.State) error {
			return s.Deploy("n", deploy.Spec{Idle: time.Hour, Pinned: true}, fine, nil)
		},
		"observe": func(s *deploy.State) error { return s.Deploy("n", deploy.Spec{Observe: -1}, fine, nil) },
		"load":    func(s *deploy.State) error { return s.Deploy("n", deploy.Spec{Load: 1 << 60}, fine, nil) },
	} {
		s := &deploy.State{}
		if err := try(s); fault.CodeOf(err) != fault.Invalid || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", field, err)
		}
		if len(s.Deployments) > 0 {
			t.Errorf("%s: there is %v", field, s.Deployments)
		}
	}
}

// A fleet and its operators do anything in any order. A name that was live stays live until it is undeployed, what
// takes requests is loaded, and a version with requests is not unloaded before the limit.
func TestKeeper_RandomLives(t *testing.T) {
	seeds := 100
	if testing.Short() {
		seeds = 20
	}
	digests := []string{"a", "b", "c", "d"}
	names := []string{"chat", "code", "small"}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		s := &deploy.State{}
		k := deploy.NewKeeper(deploy.Config{})
		seen := map[string]deploy.Sight{}
		for _, digest := range digests {
			seen[digest] = deploy.Sight{}
		}
		var story []string
		fail := func(format string, args ...any) {
			t.Fatalf("seed %d: %s; %s", seed, fmt.Sprintf(format, args...), strings.Join(story[max(0, len(story)-12):], "; "))
		}
		now := time.Duration(0)
		for range 300 {
			name, digest := names[r.IntN(len(names))], digests[r.IntN(len(digests))]
			before := s
			did := ""
			next := s.Clone()
			next.Version++
			switch r.IntN(8) {
			case 0:
				spec := deploy.Spec{Canary: float64(r.IntN(3)) / 2, Replicas: r.IntN(3), Pinned: r.IntN(4) == 0}
				if !spec.Pinned {
					spec.Idle = time.Duration(r.IntN(2)) * time.Minute
				}
				did = fmt.Sprintf("deploy %s %s %+v", name, digest, spec)
				if next.Deploy(name, spec, deploy.Version{Digest: digest}, nil) == nil {
					s = next
				}
			case 1:
				if r.IntN(4) == 0 && next.Undeploy(name, nil) == nil {
					did, s = "undeploy "+name, next
				}
			case 2:
				if next.RollBack(name, digest, 0, "it fails") {
					did, s = "roll back "+name, next
				}
			case 3:
				if next.Wake(name) {
					did, s = "wake "+name, next
				}
			default:
				m := seen[digest]
				m.Open, m.Requests, m.NoRoom = r.IntN(3) > 0, max(0, r.IntN(4)-2), ""
				if _, loaded := s.Places("", digest, false); !loaded {
					m.Open, m.Requests = false, 0
				}
				if !m.Open && r.IntN(3) == 0 {
					m.NoRoom = "full"
				}
				m.Rows += uint64(r.IntN(3) * m.Requests)
				seen[digest] = m
				now += time.Duration(1+r.IntN(20)) * time.Second
				v := deploy.View{Models: seen, Fits: func(digests []string) bool { return len(digests) < 3 }}
				var cs []deploy.Command
				s, cs = k.Step(now, v, s)
				for _, c := range cs {
					did += fmt.Sprintf("%v: %v, ", now, c)
					_, still := s.Places("", c.Digest, false)
					if c.Kind == deploy.Remove && c.Why == "" && seen[c.Digest].Requests > 0 && !still {
						fail("%v is unloaded with requests", c)
					}
				}
			}
			story = append(story, did)
			text, err := s.Encode()
			if err != nil {
				fail("%v", err)
			}
			if s, err = deploy.Parse(text); err != nil {
				fail("%v", err)
			}
			for i := range before.Deployments {
				was := &before.Deployments[i]
				is := s.Find(was.Name)
				if was.Live != nil && (is == nil || is.Live == nil && !is.Off) {
					fail("%s has lost its live version", was.Name)
				}
			}
			for i := range s.Deployments {
				d := &s.Deployments[i]
				to := d.Route(digest, func(digest string) bool { return seen[digest].Open })
				if _, loaded := s.Places("", to, false); to != "" && !loaded && d.Rest != deploy.Asleep {
					fail("%s goes to %s, which is not to be loaded", d.Name, to)
				}
				if d.Next != nil && d.Live != nil && d.Next.Digest == d.Live.Digest {
					fail("%s has %s twice", d.Name, d.Live.Digest)
				}
				for _, v := range d.Retiring {
					if d.Live != nil && v.Digest == d.Live.Digest || d.Next != nil && v.Digest == d.Next.Digest ||
						slices.Contains(d.Past, v.Digest) {
						fail("%s has %s twice", d.Name, v.Digest)
					}
				}
			}
		}
	}
}

// A client repeats requests that fail. Each prompt counts once, and other requests make up the rest.
func TestJudge_RepeatedPromptsCountOnce(t *testing.T) {
	s := &deploy.State{}
	if err := s.Deploy("chat", deploy.Spec{}, deploy.Version{Digest: "b"}, &deploy.Version{Digest: "a"}); err != nil {
		t.Fatal(err)
	}
	d := s.Find("chat")
	d.Next.Canary = true
	j := deploy.NewJudge()
	for range 20 {
		j.Ended("b", true, 7)
		j.Ended("b", true, 8)
	}
	if why := j.Verdict(d); why != "" {
		t.Errorf("two prompts: %s", why)
	}
	if j.Ended("b", true, 9); j.Verdict(d) == "" {
		t.Error("three prompts that fail do not count")
	}
	j = deploy.NewJudge()
	for range 3 {
		j.Ended("b", true, 0)
	}
	if j.Verdict(d) == "" {
		t.Error("three failures without a prompt do not count")
	}
}

func TestProgress_RestIsMeasured(t *testing.T) {
	type report struct {
		done uint64
		at   time.Duration
	}
	const s, m = time.Second, time.Minute
	start := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		reports []report
		total   uint64
		want    time.Duration
	}{
		"nothing is known":                {nil, 0, s},
		"one report":                      {[]report{{50, 0}}, 100, s},
		"from nothing":                    {[]report{{0, 0}, {80, 40 * s}}, 100, 10 * s},
		"the most was there before":       {[]report{{70, 0}, {80, 20 * s}}, 100, 40 * s},
		"nothing since":                   {[]report{{70, 0}, {70, 20 * s}}, 100, 20 * s},
		"nothing since for long":          {[]report{{70, 0}, {70, m}, {70, 2 * m}}, 100, m},
		"it has slowed down":              {[]report{{0, 0}, {50, s}, {50, 20 * s}}, 100, 20 * s},
		"nearly all":                      {[]report{{0, 0}, {99, 20 * s}}, 100, s},
		"all":                             {[]report{{0, 0}, {100, 20 * s}}, 100, s},
		"far too much":                    {[]report{{0, 0}, {1, 20 * s}}, 1 << 62, m},
		"it was unloaded and begins anew": {[]report{{90, 0}, {0, m}, {50, m + 9*s}}, 100, 9 * s},
		"nobody has looked for long":      {[]report{{10, 0}, {50, 60 * m}, {75, 60*m + 9*s}}, 100, 9 * s},
	} {
		var p deploy.Progress
		for _, r := range c.reports {
			p.Report(r.done, c.total, start.Add(r.at))
		}
		if got := p.Rest(); got.Round(time.Millisecond) != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := &deploy.State{}
	_ = s.Deploy("chat", deploy.Spec{Replicas: 2, Canary: 0.05}, deploy.Version{Digest: "b"}, &deploy.Version{Digest: "a"})
	text, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"Deployments":[{"Name":"a","Rest":"asleep","Live":{"Digest":"x"}},{"Name":"a"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := deploy.Parse(text)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Fatalf("code %v of %v", fault.CodeOf(err), err)
			}
			return
		}
		again, err := s.Encode()
		if err != nil {
			return // escapes may make it longer than the limit
		}
		if _, err := deploy.Parse(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		k := deploy.NewKeeper(deploy.Config{})
		for now := range 3 {
			s, _ = k.Step(time.Duration(now)*time.Hour, deploy.View{}, s)
		}
		if text, err = s.Encode(); err == nil {
			if _, err := deploy.Parse(text); err != nil {
				t.Fatalf("after steps: %v", err)
			}
		}
	})
}
