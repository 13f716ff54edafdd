use super::*;

fn settings() -> Settings {
    Settings {
        proxy_uid: 1337,
        proxy_gid: 1337,
        outbound_port: Port(15001),
        inbound_port: Port(15006),
        inbound_ports: Selection::All,
        exclude_inbound_ports: List::default(),
        outbound_ranges: Selection::All,
        exclude_outbound_ranges: List::default(),
        outbound_ports: List::default(),
        exclude_outbound_ports: List::default(),
        exclude_interfaces: List::default(),
    }
}

fn with_everything() -> Settings {
    Settings {
        inbound_ports: "8080, 9090".parse().unwrap(),
        exclude_inbound_ports: "22".parse().unwrap(),
        outbound_ranges: "10.1.2.3/8,fd00::/8".parse().unwrap(),
        exclude_outbound_ranges: "10.9.0.0/16,10.9.1.0/24,fd01::1".parse().unwrap(),
        outbound_ports: "443".parse().unwrap(),
        exclude_outbound_ports: "3306,25".parse().unwrap(),
        exclude_interfaces: "net1".parse().unwrap(),
        ..settings()
    }
}

#[test]
fn nft_replaces_its_table_in_one_transaction() {
    assert_eq!(
        nft::apply(&settings()),
        "add table inet weir
delete table inet weir
table inet weir {
\tchain inbound {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\ttcp dport { 15008, 15020, 15021, 15090 } return
\t\tmeta l4proto tcp redirect to :15006
\t}
\tchain outbound {
\t\ttype nat hook output priority -100; policy accept;
\t\toifname \"lo\" ip saddr 127.0.0.6 return
\t\toifname \"lo\" ip6 saddr ::6 return
\t\toifname \"lo\" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 redirect to :15006
\t\toifname \"lo\" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 redirect to :15006
\t\toifname \"lo\" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 redirect to :15006
\t\toifname \"lo\" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 redirect to :15006
\t\toifname \"lo\" return
\t\tmeta skuid 1337 return
\t\tmeta skgid 1337 return
\t\tmeta l4proto tcp redirect to :15001
\t}
}
"
    );
}

#[test]
fn iptables_has_the_same_rules_for_each_family() {
    assert_eq!(
        iptables::apply(&with_everything(), true, ""),
        "*nat
:WEIR_INBOUND - [0:0]
:WEIR_OUTBOUND - [0:0]
-A WEIR_INBOUND -p tcp -i net1 -j RETURN
-A WEIR_INBOUND -p tcp --dport 22 -j RETURN
-A WEIR_INBOUND -p tcp --dport 15008 -j RETURN
-A WEIR_INBOUND -p tcp --dport 15020 -j RETURN
-A WEIR_INBOUND -p tcp --dport 15021 -j RETURN
-A WEIR_INBOUND -p tcp --dport 15090 -j RETURN
-A WEIR_INBOUND -p tcp --dport 8080 -j REDIRECT --to-ports 15006
-A WEIR_INBOUND -p tcp --dport 9090 -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j WEIR_INBOUND
-A WEIR_OUTBOUND -p tcp -o net1 -j RETURN
-A WEIR_OUTBOUND -p tcp --dport 25 -j RETURN
-A WEIR_OUTBOUND -p tcp --dport 3306 -j RETURN
-A WEIR_OUTBOUND -p tcp -o lo -s ::6 -j RETURN
-A WEIR_OUTBOUND -p tcp -o lo ! -d ::1 ! --dport 15008 -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-A WEIR_OUTBOUND -p tcp -o lo ! -d ::1 ! --dport 15008 -m owner --gid-owner 1337 -j REDIRECT --to-ports 15006
-A WEIR_OUTBOUND -p tcp -o lo -j RETURN
-A WEIR_OUTBOUND -p tcp -m owner --uid-owner 1337 -j RETURN
-A WEIR_OUTBOUND -p tcp -m owner --gid-owner 1337 -j RETURN
-A WEIR_OUTBOUND -p tcp -d fd01::1/128 -j RETURN
-A WEIR_OUTBOUND -p tcp --dport 443 -j REDIRECT --to-ports 15001
-A WEIR_OUTBOUND -p tcp -d fd00::/8 -j REDIRECT --to-ports 15001
-A OUTPUT -p tcp -j WEIR_OUTBOUND
COMMIT
"
    );
    let v4 = iptables::apply(&with_everything(), false, "");
    assert!(v4.contains("-d 10.0.0.0/8 -j REDIRECT"), "host bits are dropped: {v4}");
    assert!(!v4.contains("::"), "{v4}");
}

#[test]
fn a_jump_is_added_once_and_deleted_as_often_as_it_is_there() {
    let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:WEIR_INBOUND - [0:0]\n:WEIR_OUTBOUND - [0:0]\n\
                 -A PREROUTING -p tcp -j WEIR_INBOUND\n-A PREROUTING -p tcp -j WEIR_INBOUND\nCOMMIT\n";
    let again = iptables::apply(&settings(), false, saved);
    assert!(!again.contains("-A PREROUTING"), "{again}");
    assert!(again.contains("-A OUTPUT -p tcp -j WEIR_OUTBOUND\n"), "{again}");
    assert_eq!(
        iptables::clean_up(saved).unwrap(),
        "*nat\n:WEIR_INBOUND - [0:0]\n:WEIR_OUTBOUND - [0:0]\n\
         -D PREROUTING -p tcp -j WEIR_INBOUND\n-D PREROUTING -p tcp -j WEIR_INBOUND\n-X WEIR_INBOUND\n\
         -X WEIR_OUTBOUND\nCOMMIT\n"
    );
    assert_eq!(iptables::clean_up("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), None);
}

#[test]
fn nothing_selected_is_nothing_redirected() {
    let none = Settings {
        inbound_ports: "".parse().unwrap(),
        outbound_ranges: "".parse().unwrap(),
        ..settings()
    };
    assert_eq!(none.inbound(), []);
    let to_outbound = |rule: &Rule| rule.verdict == Verdict::Redirect(15001);
    assert!(!none.outbound().iter().any(to_outbound));
}

#[test]
fn lists_say_what_is_wrong() {
    let ports = |text: &str| text.parse::<Selection<Port>>().unwrap_err();
    assert_eq!(ports("80,http"), "\"http\" is not a port (1 to 65535)");
    assert_eq!(ports("0"), "\"0\" is not a port (1 to 65535)");
    assert_eq!(ports("*,80"), "`*` stands for everything and must be alone");
    let range = |text: &str| text.parse::<List<Network>>().unwrap_err();
    assert!(range("10.0.0.0/8,10.0.0/8").starts_with("\"10.0.0/8\" is not a CIDR range"));
    assert_eq!(range("10.0.0.0/33"), "\"10.0.0.0/33\": the prefix is longer than 32 bits");
    assert!(range("*").starts_with("\"*\" is not a CIDR range"));
    assert!("eth0\";".parse::<List<InterfaceName>>().unwrap_err().contains("name of an interface"));
    let networks: List<Network> = "0.0.0.0/0, ::/0,10.0.0.1,10.0.0.1/32".parse().unwrap();
    let texts: Vec<_> = networks.0.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["0.0.0.0/0", "10.0.0.1/32", "::/0"]);
}
