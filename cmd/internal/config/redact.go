package config

import (
	"net/url"
	"strings"
)

// hidden stands in place of a secret.
const hidden = "xxxxx"

// Redact returns a store address without the secrets in it: the password, and those of MongoDB's options. It reads the
// text itself, since what is not a proper address may hold a secret too. Where it cannot tell, it shows nothing.
func Redact(address string) string {
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		scheme, rest = "", address
	} else {
		scheme += "://"
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if strings.Contains(query, "@") {
		return "an address that cannot be shown" // the question mark may be one of the password
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		if user, _, hasPassword := strings.Cut(rest[:at], ":"); hasPassword {
			rest = user + ":" + hidden + rest[at:]
		}
	}
	if hasQuery {
		query = "?" + redactQuery(query)
	}
	return scheme + rest + query
}

// redactQuery hides the secrets among the options. MongoDB's driver takes a semicolon between them as well.
func redactQuery(query string) string {
	var b strings.Builder
	for query != "" {
		end := strings.IndexAny(query, "&;")
		if end < 0 {
			end = len(query)
		}
		b.WriteString(redactOption(query[:end]))
		if end < len(query) {
			b.WriteByte(query[end])
			end++
		}
		query = query[end:]
	}
	return b.String()
}

func redactOption(option string) string {
	name, value, _ := strings.Cut(option, "=")
	key, err := url.QueryUnescape(name)
	plain, errValue := url.QueryUnescape(value)
	// authMechanismProperties is a list of names and values: with a secret in it, all of it is hidden.
	if err != nil || errValue != nil || secret(key) || strings.EqualFold(key, "authMechanismProperties") && secret(plain) {
		return name + "=" + hidden
	}
	return option
}

// secret tells whether what has this name is one: tlsCertificateKeyFilePassword, proxyPassword, AWS_SESSION_TOKEN.
func secret(name string) bool {
	name = strings.ToLower(name)
	return strings.Contains(name, "password") || strings.Contains(name, "token") || strings.Contains(name, "secret")
}
