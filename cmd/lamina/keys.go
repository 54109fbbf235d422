package main

import (
	"fmt"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// keysGroup is the table of commands for API keys.
type keysGroup struct {
	Create keysCreateCmd `cmd:"" help:"Make an API key and print its secret, which is shown this once."`
	List   keysListCmd   `cmd:"" help:"List the API keys."`
	Rotate keysRotateCmd `cmd:"" help:"Give an API key another secret and print it. The old one is valid for another while."`
	Revoke keysRevokeCmd `cmd:"" help:"Make an API key invalid for good."`
}

// keyFileFlags name a file of keys.
type keyFileFlags struct {
	Keys     string `help:"File of API keys, which router and up watch." default:"keys.json" env:"LAMINA_AUTH_KEYS" type:"path"`
	AuditLog string `help:"File to which the change is appended as a line of JSON. Default: none." env:"LAMINA_AUDIT_LOG"`
}

// audit changes the keys and writes that to the audit log. Without the log nothing is changed. change returns the id of
// the key; where it fails, the log has what the user has given.
func (f keyFileFlags) audit(what, given string, change func() (id string, err error)) error {
	if f.AuditLog == "" {
		_, err := change()
		return err
	}
	w, err := auth.OpenAuditLog(f.AuditLog)
	if err != nil {
		return err
	}
	id, result := change()
	if id == "" {
		id = given
	}
	who := "unknown"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	var failed error
	log := auth.NewAuditLog(w, time.Now, func(err error) { failed = err })
	log.Write(nil, auth.Action{Who: "user:" + who, What: "keys " + what, Target: id}, result)
	if err := w.Close(); failed == nil {
		failed = err
	}
	if result != nil {
		return result
	}
	return failed
}

type keysCreateCmd struct {
	keyFileFlags
	Name     string        `arg:"" optional:"" help:"Name of the key, for people and logs."`
	Tenant   string        `help:"Tenant of its requests, whose caches and queues are separate. Default: the name."`
	Role     []string      `help:"Role: user (models), trainer (training runs), operator (everything but text) or service (acts for others, and may name their tenants). Can be repeated." default:"user"`
	Verb     []string      `help:"Allow only this: generate, embed, tokenize, models, batch, train, observe, operate, keys, probe or page. Can be repeated. Default: what the roles allow."`
	Model    []string      `help:"Allow only the model of this name or digest. Can be repeated. Default: all models." sep:"none"`
	Requests int64         `help:"Budget in requests a minute; 0 for no limit." default:"0"`
	Tokens   int64         `help:"Budget in tokens of prompts and answers a minute; 0 for no limit." default:"0"`
	Expires  time.Duration `help:"Time until the key expires, such as 720h; 0 for never." default:"0s"`
	Format   string        `help:"Output: text (the secret alone) or json." default:"text" enum:"text,json"`
}

// Run makes a key.
func (c *keysCreateCmd) Run(e *verb.Env) error {
	k := auth.Key{Name: c.Name, Tenant: c.Tenant, Models: c.Model, Requests: c.Requests, Tokens: c.Tokens}
	for _, name := range c.Role {
		k.Roles = append(k.Roles, auth.Role(name))
	}
	for _, name := range c.Verb {
		k.Verbs = append(k.Verbs, auth.Verb(name))
	}
	now := time.Now()
	switch {
	case c.Expires < 0:
		return fault.Field("expires", "want 0 or more, got %v", c.Expires)
	case c.Expires > 0:
		k.Expires = now.Add(c.Expires).UTC().Truncate(time.Second)
	}
	var secret string
	err := c.audit("create", c.Name, func() (id string, err error) {
		k, secret, err = auth.AddKey(c.Keys, k, now)
		return k.ID, err
	})
	if err != nil {
		return err
	}
	return printSecret(e, c.Format, k, secret)
}

func printSecret(e *verb.Env, format string, k auth.Key, secret string) error {
	if format == "json" {
		return verb.PrintJSON(e, map[string]any{"id": k.ID, "secret": secret, "key": k.Public()})
	}
	fmt.Fprintf(e.Stderr, "key %s: keep its secret, which is not stored and not shown again\n", k.ID)
	fmt.Fprintln(e.Stdout, secret)
	return nil
}

type keysListCmd struct {
	keyFileFlags
	Format string `help:"Output: text or json." default:"text" enum:"text,json"`
}

// Run lists the keys.
func (c *keysListCmd) Run(e *verb.Env) error {
	keys, err := auth.ReadKeys(c.Keys)
	if err != nil {
		return err
	}
	if c.Format == "json" {
		list := make([]auth.Key, 0, len(keys))
		for _, k := range keys {
			list = append(list, k.Public())
		}
		return verb.PrintJSON(e, map[string]any{"keys": list})
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tTENANT\tROLES\tMODELS\tREQUESTS/MIN\tTOKENS/MIN\tCREATED\tEXPIRES\tSTATE")
	for _, k := range keys {
		roles := make([]string, len(k.Roles))
		for i, r := range k.Roles {
			roles[i] = string(r)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, orDash(k.Name), orDash(k.Tenant),
			strings.Join(roles, ","), orAll(k.Models), orNone(k.Requests), orNone(k.Tokens),
			k.Created.Format(time.DateTime), when(k.Expires), k.State(time.Now()))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orAll(models []string) string {
	if len(models) == 0 {
		return "all"
	}
	return strings.Join(models, ",")
}

func orNone(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.DateTime)
}

type keysRotateCmd struct {
	keyFileFlags
	Key    string        `arg:"" help:"Id or name of the key."`
	Grace  time.Duration `help:"How long the old secret is valid." default:"1h"`
	Format string        `help:"Output: text (the secret alone) or json." default:"text" enum:"text,json"`
}

// Run gives a key another secret.
func (c *keysRotateCmd) Run(e *verb.Env) error {
	var secret string
	var rotated auth.Key
	err := c.audit("rotate", c.Key, func() (id string, err error) {
		rotated, secret, err = auth.RotateKey(c.Keys, c.Key, c.Grace, time.Now())
		return rotated.ID, err
	})
	if err != nil {
		return err
	}
	return printSecret(e, c.Format, rotated, secret)
}

type keysRevokeCmd struct {
	keyFileFlags
	Key string `arg:"" help:"Id or name of the key."`
}

// Run makes a key invalid.
func (c *keysRevokeCmd) Run(e *verb.Env) error {
	var revoked auth.Key
	err := c.audit("revoke", c.Key, func() (id string, err error) {
		revoked, err = auth.RevokeKey(c.Keys, c.Key, time.Now())
		return revoked.ID, err
	})
	if err == nil {
		fmt.Fprintf(e.Stdout, "key %s is revoked\n", revoked.ID)
	}
	return err
}
