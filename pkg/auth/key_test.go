package auth_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

var start = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// newKey returns a key with the given changes.
func newKey(t testing.TB, change func(*auth.Key)) (auth.Key, string) {
	t.Helper()
	k := auth.Key{Name: "a", Tenant: "team", Roles: []auth.Role{auth.User}}
	if change != nil {
		change(&k)
	}
	k, secret, err := auth.NewKey(k, start)
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

func TestNewSecret_IsRecognisableAndNeverTheSame(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := auth.NewSecret()
		if !strings.HasPrefix(s, auth.Prefix) || len(s) != len(auth.Prefix)+64 || seen[s] {
			t.Fatalf("secret %q", s)
		}
		seen[s] = true
	}
}

func TestKey_StoresNoSecret(t *testing.T) {
	k, secret := newKey(t, nil)
	k.Rotate(start, time.Hour)
	text, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), strings.TrimPrefix(secret, auth.Prefix)) {
		t.Error("the stored key has its secret")
	}
}

func TestKey_CheckNamesTheField(t *testing.T) {
	for field, change := range map[string]func(*auth.Key){
		"id":                  func(k *auth.Key) { k.ID = "x" },
		"sha256":              func(k *auth.Key) { k.Digest = "00" },
		"old.sha256":          func(k *auth.Key) { k.Old = &auth.OldSecret{Digest: "zz"} },
		"name":                func(k *auth.Key) { k.Name = "a\n" },
		"tenant":              func(k *auth.Key) { k.Tenant = strings.Repeat("x", 65) },
		"roles":               func(k *auth.Key) { k.Roles = nil },
		"role":                func(k *auth.Key) { k.Roles = []auth.Role{"root"} },
		"verb":                func(k *auth.Key) { k.Verbs = []auth.Verb{"fly"} },
		"models[1]":           func(k *auth.Key) { k.Models = []string{"m", ""} },
		"requests_per_minute": func(k *auth.Key) { k.Requests = -1 },
		"tokens_per_minute":   func(k *auth.Key) { k.Tokens = auth.MaxBudget + 1 },
	} {
		k, _ := newKey(t, nil)
		change(&k)
		var f *fault.Error
		if err := k.Check(); !errors.As(err, &f) || f.Field != field || f.Code != fault.Invalid {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestKey_RolesAndVerbsRestrictEachOther(t *testing.T) {
	for _, c := range []struct {
		roles []auth.Role
		verbs []auth.Verb
		may   auth.Verb
		want  bool
	}{
		{[]auth.Role{auth.User}, nil, auth.Generate, true},
		{[]auth.Role{auth.User}, nil, auth.Train, false},
		{[]auth.Role{auth.User}, []auth.Verb{auth.Models}, auth.Generate, false},
		{[]auth.Role{auth.User}, []auth.Verb{auth.Train}, auth.Train, false},
		{[]auth.Role{auth.User, auth.Trainer}, nil, auth.Train, true},
		{[]auth.Role{auth.Operator}, nil, auth.Generate, false},
		{[]auth.Role{auth.Program}, nil, auth.Operate, false},
	} {
		k := auth.Key{Roles: c.roles, Verbs: c.verbs}
		if got := k.May(c.may); got != c.want {
			t.Errorf("%v %v may %s: %v", c.roles, c.verbs, c.may, got)
		}
	}
}

func TestParseKeys_NamesWhatIsWrong(t *testing.T) {
	k, _ := newKey(t, nil)
	one, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	valid := string(one)
	for text, want := range map[string]string{
		``:                                      "line 1: the file ends too early",
		"{\"version\": 1, \"keys\": []}\nx":     "line 2: want one value",
		`{"version": 1, "keys": {}}`:            "keys: line 1: want a list, got an object",
		`{"version": 2, "keys": []}`:            "version",
		`{"version": 1, "keys": [], "more": 1}`: "more",
		`{"version": 1, "keys": [{}]}`:          "key 0: id",
		`{"version": 1, "keys": [` + valid + `,` + valid + `]}`: "key 1: another",
	} {
		if _, err := auth.ParseKeys([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", text, err, want)
		}
	}
	if keys, err := auth.ParseKeys([]byte(`{"version": 1, "keys": [` + valid + `]}`)); err != nil || len(keys) != 1 ||
		keys[0].Digest != k.Digest {
		t.Errorf("%v, %v", keys, err)
	}
}

func FuzzParseKeys(f *testing.F) {
	k, _ := newKey(f, func(k *auth.Key) { k.Models = []string{"m"}; k.Tokens = 5 })
	k.Rotate(start, time.Hour)
	text, err := json.Marshal(map[string]any{"version": 1, "keys": []auth.Key{k}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version": 1, "keys": [{"id": "000000000000"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := auth.ParseKeys(text)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%v has code %v", err, fault.CodeOf(err))
			}
			return
		}
		for i := range keys {
			if err := keys[i].Check(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestUpdateKeys_ConcurrentChangesAllCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	var wg sync.WaitGroup
	const writers, each = 4, 5
	for range writers {
		wg.Go(func() {
			for range each {
				k, _ := newKey(t, nil)
				change := func() error {
					return auth.UpdateKeys(path, func(keys []auth.Key) ([]auth.Key, error) {
						return append(keys, k), nil
					})
				}
				// On a machine whose disk is busy the others may hold the lock for longer than a change waits, and the
				// error says to try again. Then nothing was changed.
				err := change()
				for tries := 1; fault.CodeOf(err) == fault.Unavailable && tries < 100; tries++ {
					err = change()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	keys, err := auth.ReadKeys(path)
	if err != nil || len(keys) != writers*each {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 1 || left[0] != path+".lock" {
		t.Errorf("left over: %v", left)
	}
}

// lockingPath is the variable that makes this test program change the keys of a file, and die meanwhile.
const lockingPath = "LAMINA_TEST_LOCKING_PATH"

func TestMain(m *testing.M) {
	if path := os.Getenv(lockingPath); path != "" {
		_ = auth.UpdateKeys(path, func([]auth.Key) ([]auth.Key, error) {
			fmt.Println("locked")
			_, err := io.Copy(io.Discard, os.Stdin) // until it is killed
			return nil, err
		})
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestUpdateKeys_AProcessThatDiesLeavesNoLock kills a process while it changes the keys. A file that its predecessor
// has left is no lock either.
func TestUpdateKeys_AProcessThatDiesLeavesNoLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command(self)
	other.Env = append(os.Environ(), lockingPath+"="+path)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "locked\n" {
		t.Errorf("the other process says %q, %v", line, err)
	}
	keep := func(k []auth.Key) ([]auth.Key, error) { return k, nil }
	changed := make(chan error, 1)
	go func() { changed <- auth.UpdateKeys(path, keep) }()
	select {
	case err := <-changed:
		t.Fatalf("the keys were changed while another process changes them: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := errors.Join(other.Process.Kill(), <-changed); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err == nil {
		t.Error("the other process has not been killed")
	}
	if _, err := auth.ReadKeys(path); err != nil {
		t.Error(err)
	}
}

func TestUpdateKeys_AFailedChangeChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := auth.UpdateKeys(
		path,
		func([]auth.Key) ([]auth.Key, error) { return []auth.Key{{ID: "x"}}, nil },
	); err == nil {
		t.Error("keys were written that cannot be read")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file exists: %v", err)
	}
}

func TestReadKeys_RefusesAFileThatOthersMayWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := auth.UpdateKeys(path, func(k []auth.Key) ([]auth.Key, error) { return k, nil }); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.ReadKeys(path); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("%v", err)
	}
}

// TestUpdateKeys_KeepsWhoMayReadTheFile changes a file that a group may read, such as that of the service's user.
func TestUpdateKeys_KeepsWhoMayReadTheFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no modes of groups")
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	for _, mode := range []os.FileMode{0o600, 0o640, 0o644} { // the file is new at first
		if err := auth.UpdateKeys(path, func(k []auth.Key) ([]auth.Key, error) { return k, nil }); err != nil {
			t.Fatal(err)
		}
		if mode != 0o600 {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if err := auth.UpdateKeys(path, func(k []auth.Key) ([]auth.Key, error) { return k, nil }); err != nil {
				t.Fatal(err)
			}
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("the mode is %v, want %v: %v", info.Mode(), mode, err)
		}
	}
}
