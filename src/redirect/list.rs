//! The lists that select traffic, as in the annotations of Istio.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Values separated by commas; none for the empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T>(pub BTreeSet<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: FromStr<Err = String> + Ord> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Everything (`*`), or only what a list contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection<T> {
    /// Everything.
    All,
    /// Only these.
    Only(BTreeSet<T>),
}

impl<T: FromStr<Err = String> + Ord> FromStr for Selection<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "*" => Ok(Self::All),
            text if text.split(',').any(|item| item.trim() == "*") => {
                Err("`*` stands for everything and must be alone".to_owned())
            }
            text => text.parse().map(|List(items)| Self::Only(items)),
        }
    }
}

/// A TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port(pub u16);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(port) if port > 0 => Ok(Self(port)),
            _ => Err(format!("{text:?} is not a port (1 to 65535)")),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A network in CIDR notation, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    pub(super) fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }
}

impl FromStr for Network {
    type Err = String;

    /// Parses `10.0.0.0/8`, `fd00::/8`, or an address, which is a network of its own. Host bits are dropped.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = address_and_prefix(text).ok_or_else(|| {
            format!("{text:?} is not a CIDR range, such as 10.0.0.0/8 or fd00::/8")
        })?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err(format!("{text:?}: the prefix is longer than {bits} bits"));
        }
        let host = u32::from(bits - prefix);
        let address = match address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V4((u32::from(ip) & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V6((u128::from(ip) & mask).into())
            }
        };
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn address_and_prefix(text: &str) -> Option<(IpAddr, Option<u8>)> {
    match text.split_once('/') {
        Some((address, prefix)) => Some((address.parse().ok()?, Some(prefix.parse().ok()?))),
        None => Some((text.parse().ok()?, None)),
    }
}

/// The name of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InterfaceName(pub String);

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// `IFNAMSIZ` without the final NUL.
        const LONGEST: usize = 15;
        let unfit = text.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_.:@".contains(c));
        if text.is_empty() || text.len() > LONGEST || unfit {
            return Err(format!(
                "{text:?} is not the name of an interface: 1 to {LONGEST} of A-Z, a-z, 0-9 and \"-_.:@\""
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
