//! Everything that is the operating system's, behind one interface for all of them: the rest of
//! the crate is written for no system. The service is at home on Linux; where another system
//! offers less, a function says what it does there instead, and which promise is weaker.
//!
//! | | Linux | macOS | Windows |
//! |---|---|---|---|
//! | [`files`]: names in a directory are synced | yes | yes | if the file system can |
//! | [`files`]: only the owner reads the data | modes | modes | rights of the directory |
//! | [`sockets`]: bytes not acknowledged | `SIOCOUTQ` | `SO_NWRITE` | not told |
//! | [`sockets`]: a deadline for them | `TCP_USER_TIMEOUT` | the system's | the system's |
//! | [`sockets`]: the address a datagram was sent to | told | told | told from 10 on |
//! | [`process`]: the limit of open files | raised | raised | there is none |
//! | [`process`]: metrics named `process_*` | `/proc` | none | none |
//! | [`signals`]: reload without a restart | SIGHUP | SIGHUP | none |
//! | [`stdout`]: a closed standard output is an error | yes | yes | not noticed |

pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod sockets;
pub(crate) mod stdout;
