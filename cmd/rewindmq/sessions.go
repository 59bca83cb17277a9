package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/api"
	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
)

// operator are the flags of the commands that ask the running broker.
type operator struct {
	settings settings
	output   string
}

func (o *operator) add(cmd *cobra.Command) {
	o.settings.add(cmd)
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "`format` of what is printed: text or json")
}

// dial returns a client of the broker that the configuration names.
func (o *operator) dial(cmd *cobra.Command) (*api.Client, error) {
	if o.output != "text" && o.output != "json" {
		return nil, usage("--output %s: there are text and json", o.output)
	}
	loaded, err := o.settings.load(cmd)
	if err != nil {
		return nil, err
	}
	if loaded.Config.HTTP.Addr == config.HTTPOff {
		return nil, exit.With(exit.Connect, errors.New("HTTP is off, so nobody can be asked (http.addr)"))
	}
	return api.Dial(loaded.Config.HTTP.Addr)
}

// asking makes the body of a command that asks the running broker.
func (o *operator) asking(body func(cmd *cobra.Command, c *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return running(func(cmd *cobra.Command, args []string) error {
		c, err := o.dial(cmd)
		if err != nil {
			return err
		}
		return body(cmd, c, args)
	})
}

// exactJSON encodes v without changing a character that JSON need not change.
func exactJSON(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// plain returns text as it is when it is one word that cannot be mistaken, else quoted: one line stays one line.
func plain(text string) string {
	odd := func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == '"' || r == '\\' }
	if text == "" || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}

func stateOf(s *api.Session) string {
	switch {
	case s.Here:
		return "connected"
	case s.Connected:
		return "elsewhere"
	default:
		return "offline"
	}
}

func expiryOf(s *api.Session) string {
	if s.Expiry == nil {
		return "never"
	}
	return (time.Duration(*s.Expiry) * time.Second).String()
}

func goneOf(s *api.Session) string {
	if s.Gone == nil {
		return "-"
	}
	return s.Gone.Format(time.RFC3339)
}

func newSessions() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List, show and end the sessions of the broker on this machine",
		Long: "Asks the broker at the address that the configuration gives (--http, http.addr). It answers only on the machine\n" +
			"that it runs on.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newSessionsList(), newSessionsShow(), newSessionsRemove())
	return cmd
}

func newSessionsList() *cobra.Command {
	var o operator
	var offline bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List all sessions, in the order of their client ids",
		Args:  cobra.NoArgs,
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, _ []string) error {
			p := o.printer(cmd.OutOrStdout(), "CLIENT", "STATE", "EXPIRY", "GONE")
			err := c.EachSession(cmd.Context(), func(s api.Session) error {
				if offline && s.Connected {
					return nil
				}
				return p.print(s, plain(s.Client), stateOf(&s), expiryOf(&s), goneOf(&s))
			})
			return p.end(err)
		}),
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&offline, "offline", false, "those without a connection only")
	return cmd
}

func newSessionsShow() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "show CLIENT",
		Short: "Show one session with its subscriptions",
		Args:  cobra.ExactArgs(1),
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, args []string) error {
			s, err := c.Session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if o.output == "json" {
				text, err := exactJSON(s)
				if err == nil {
					_, err = fmt.Fprintln(out, text)
				}
				return err
			}
			fmt.Fprintf(out, "client     %s\nstate      %s\nexpiry     %s\ngone       %s\nin flight  %d\n",
				plain(s.Client), stateOf(&s), expiryOf(&s), goneOf(&s), *s.InFlight)
			for _, sub := range s.Subscriptions {
				if _, err = fmt.Fprintf(out, "filter     %s  QoS %d\n", plain(sub.Filter), sub.QoS); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	o.add(cmd)
	return cmd
}

func newSessionsRemove() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "rm CLIENT",
		Short: "End a session: its connection, its subscriptions and all it has not got",
		Long: "Ends a session now. A connection is closed, an MQTT 5 client with reason 0x98, and the will of the client is\n" +
			"published. What was published to it and not acknowledged is not kept for it. A client that connects again\n" +
			"begins anew.",
		Args: cobra.ExactArgs(1),
		RunE: o.asking(func(cmd *cobra.Command, c *api.Client, args []string) error {
			if err := c.EndSession(cmd.Context(), args[0]); err != nil {
				return err
			}
			return o.done(cmd.OutOrStdout(), "ended", "client", args[0])
		}),
	}
	o.add(cmd)
	return cmd
}

// done prints that something was done.
func (o *operator) done(out io.Writer, what, noun, name string) error {
	line := what + " " + plain(name)
	if o.output == "json" {
		text, err := exactJSON(map[string]string{noun: name, "done": what})
		if err != nil {
			return err
		}
		line = text
	}
	_, err := fmt.Fprintln(out, line)
	return err
}
