package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rewindmq/cmd/internal/link"
)

// client are the flags that pub and sub share, with the letters of mosquitto's tools.
type client struct {
	host     string
	port     uint16
	id       string
	user     string
	password string
	qos      uint8
	wait     time.Duration
	quiet    bool
}

func (c *client) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Bool("help", false, "help for "+cmd.Name()) // without a letter: -h is the host, as in mosquitto's tools
	f.StringVarP(&c.host, "host", "h", "localhost", "`host` of the server")
	f.Uint16VarP(&c.port, "port", "p", 1883, "`port` of the server")
	f.StringVarP(&c.id, "id", "i", "", "client `id`; default: a random one")
	f.StringVarP(&c.user, "username", "u", "", "user `name`")
	f.StringVarP(&c.password, "pw", "P", "", "`password`")
	f.Uint8VarP(&c.qos, "qos", "q", 2, "quality of service: 0, 1 or 2")
	f.DurationVar(&c.wait, "connect-wait", 0, "how long to try the first connection; 0: once")
	f.BoolVar(&c.quiet, "quiet", false, "print errors only")
}

// options returns the options of the connection. prefix begins a random client id.
func (c *client) options(cmd *cobra.Command, prefix string) (link.Options, error) {
	if c.qos > 2 {
		return link.Options{}, usage("-q %d: there are QoS 0, 1 and 2", c.qos)
	}
	o := link.Options{Addr: net.JoinHostPort(c.host, strconv.Itoa(int(c.port))), ClientID: c.id}
	if o.ClientID == "" {
		o.ClientID = prefix + strings.ToLower(rand.Text()[:12])
	}
	if err := checkText("client id", o.ClientID); err != nil {
		return link.Options{}, err
	}
	if cmd.Flags().Changed("username") {
		o.Username = &c.user
	}
	if cmd.Flags().Changed("pw") {
		o.Password = []byte(c.password)
	}
	return o, nil
}

// notice returns a function that tells the user something on standard error.
func (c *client) notice(cmd *cobra.Command) func(string) {
	if c.quiet {
		return nil
	}
	return func(line string) { cmd.PrintErrln(cmd.CommandPath() + ": " + line) }
}

// checkText refuses what no MQTT string may be [MQTT-1.5.4-1], [MQTT-1.5.4-2], or is too long for one.
func checkText(noun, text string) error {
	switch {
	case text == "":
		return usage("the %s is empty", noun)
	case len(text) > 65535:
		return usage("the %s has %d bytes, MQTT takes 65535", noun, len(text))
	case !utf8.ValidString(text), strings.ContainsRune(text, 0):
		return usage("the %s is not UTF-8, or has a NUL in it", noun)
	}
	return nil
}

// openInput opens a file to read, or standard input for "-". size is 0 when it is not known.
func openInput(cmd *cobra.Command, name string) (in io.ReadCloser, size int64, err error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), 0, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("open the input: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, errors.Join(fmt.Errorf("open the input: %w", err), f.Close())
	case info.IsDir():
		return nil, 0, errors.Join(fmt.Errorf("open the input: %s is a directory", name), f.Close())
	case info.Mode().IsRegular():
		size = info.Size()
	}
	return f, size, nil
}

// onTerminal says whether w is a terminal.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
