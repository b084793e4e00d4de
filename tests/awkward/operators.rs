//! Awkward clients on the operators' port.

use std::{io::Write, net::TcpStream, thread, time::Duration};

use tempfile::TempDir;

use super::{honest::Honest, kernel::crowd_turn};
use crate::support::Service;

/// Proves that connections which never finish their request, more of them than there may be, keep
/// neither operators from their figures nor clients from their links.
#[test]
fn slow_requests_keep_no_reader_from_the_metrics() {
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut honest = Honest::begin(&service);
    honest.beside("slow requests", || {
        let mut slow: Vec<_> = (0..300).map(|_| begin(&service)).collect();
        for _ in 0..20 {
            slow.retain_mut(|stream| stream.write_all(b"x: y\r\n").is_ok());
            while slow.len() < 300 {
                slow.push(begin(&service)); // one that is thrown out comes back
            }
            for path in ["/metrics", "/livez", "/readyz", "/status"] {
                assert_eq!(service.get(path).0, 200, "{path}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let open = service.metric("emnetchain_connections{listener=\"http\"}");
        println!("{open} connections to the HTTP server are open");
        assert!(open <= 128.0, "{open} connections");
    });
}

fn begin(service: &Service) -> TcpStream {
    let mut stream = TcpStream::connect(service.address("HTTP")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    stream
}
