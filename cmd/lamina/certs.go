package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// certsGroup is the table of commands for the certificates of a mesh.
type certsGroup struct {
	Init   certsInitCmd   `cmd:"" help:"Make a certificate authority, and certificates for each service and role."`
	Issue  certsIssueCmd  `cmd:"" help:"Issue another certificate for a service or role, or replace one before it expires."`
	Revoke certsRevokeCmd `cmd:"" help:"Revoke certificates: services that read the list close their connections and refuse new ones."`
}

// leafFlags are what certificates have in common.
type leafFlags struct {
	Dir  string        `help:"Folder of the authority and the certificates." default:"certs" type:"path"`
	Host []string      `help:"Name or address at which the services are reached. Can be repeated. localhost, 127.0.0.1 and ::1 are always included."`
	For  time.Duration `help:"How long certificates of services and roles are valid." default:"2160h"`
}

type certsInitCmd struct {
	leafFlags
	Domain string        `help:"Trust domain of the SPIFFE ids." default:"lamina"`
	CAFor  time.Duration `name:"ca-for" help:"How long the authority is valid." default:"87600h"`
}

// Run makes an authority and certificates.
func (c *certsInitCmd) Run(e *verb.Env) error {
	if c.For <= 0 || c.CAFor <= 0 {
		return fault.Field("for", "want more than 0")
	}
	ca, err := issue.NewAuthority(c.Domain, time.Now(), c.CAFor)
	if err != nil {
		return err
	}
	if err := ca.Save(c.Dir); err != nil {
		return err
	}
	for _, id := range issue.All() {
		if err := c.issue(e, ca, id); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.Stdout, "\nGive each service its own pair and %s, and keep %s off all of them.\n",
		filepath.Join(c.Dir, "ca.pem"), filepath.Join(c.Dir, "ca.key"))
	return nil
}

func (c *leafFlags) issue(e *verb.Env, ca *issue.Authority, id issue.ID) error {
	if err := ca.Issue(c.Dir, id, c.Host, time.Now(), c.For); err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "%s\t%s\n", filepath.Join(c.Dir, id.Name()+".pem"), id.URI(ca.Domain()))
	if time.Now().Add(c.For).After(ca.Expires()) {
		fmt.Fprintf(e.Stderr, "it is valid until %s only, when the authority expires\n",
			ca.Expires().Format(time.DateTime))
	}
	return nil
}

type certsIssueCmd struct {
	leafFlags
	Service string `help:"Service: router, tokenizer, sampler, shard, trainer or monitor." xor:"id" required:""`
	Role    string `help:"Role: user, trainer, operator or service." xor:"id" required:""`
}

// Run issues one certificate. It replaces the files at once, and services that run read them again.
func (c *certsIssueCmd) Run(e *verb.Env) error {
	if c.For <= 0 { // it would replace a certificate by one that has expired
		return fault.Field("for", "want more than 0, got %v", c.For)
	}
	ca, err := issue.LoadAuthority(c.Dir)
	if err != nil {
		return err
	}
	id, err := issue.ParseID(auth.Service(c.Service), auth.Role(c.Role))
	if err != nil {
		return err
	}
	return c.issue(e, ca, id)
}

type certsRevokeCmd struct {
	Dir      string   `help:"Folder of the authority." default:"certs" type:"path"`
	Service  string   `help:"Revoke all certificates of this service: router, tokenizer, sampler, shard, trainer or monitor."`
	Role     string   `help:"Revoke all certificates of this role: user, trainer, operator or service."`
	Replaced bool     `help:"With --service or --role: not the certificate that is in the folder now."`
	Cert     []string `help:"Revoke the certificate in this PEM file. Can be repeated." type:"path" sep:"none"`
	Serial   []string `help:"Revoke the certificate with this serial number, in hexadecimal. Can be repeated."`
}

// Run signs a new list of revoked certificates. Services that run read it again.
func (c *certsRevokeCmd) Run(e *verb.Env) error {
	if c.Service != "" && c.Role != "" {
		return fault.Field("service", "give --service or --role, and not both")
	}
	named := c.Service != "" || c.Role != ""
	if !named && len(c.Cert) == 0 && len(c.Serial) == 0 {
		return fault.Field("service", "say what to revoke: --service, --role, --cert or --serial")
	}
	if c.Replaced && !named {
		return fault.Field("replaced", "it is for --service and --role")
	}
	ca, err := issue.LoadAuthority(c.Dir)
	if err != nil {
		return err
	}
	now := time.Now()
	var certs []issue.Issued
	if named {
		id, err := issue.ParseID(auth.Service(c.Service), auth.Role(c.Role))
		if err != nil {
			return err
		}
		if certs, err = ca.Select(c.Dir, id, c.Replaced, now); err != nil {
			return err
		}
	}
	for _, path := range c.Cert {
		cert, err := ca.Certificate(path)
		if err != nil {
			return err
		}
		certs = append(certs, cert)
	}
	for _, serial := range c.Serial {
		certs = append(certs, issue.Issued{Serial: serial})
	}
	revoked, err := ca.Revoke(c.Dir, certs, now)
	if err != nil {
		return err
	}
	for _, r := range revoked {
		fmt.Fprintf(e.Stdout, "revoked\t%s\t%s\n", r.Serial, r.ID)
	}
	fmt.Fprintf(e.Stderr, "%d revoked, %d were so already; services read %s with --tls-revoked\n", len(revoked),
		len(certs)-len(revoked), filepath.Join(c.Dir, issue.RevokedFile))
	return nil
}
