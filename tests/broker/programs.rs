//! Programs of the documents, run as they stand there with real client libraries, which `./test` installs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::sync::OnceCell;

pub const MISSING: &str = "the client libraries are missing: run ./test";

const POM: &str = include_str!("spring/pom.xml");
const APPLICATION: &str = include_str!("../../docs/application.md");
pub const EXAMPLES: &str = include_str!("../../docs/examples.md");
/// The programs of Spring: one project, a package for each.
const SPRING: [(&str, &str); 4] = [
    (APPLICATION, "shop/Orders"),
    (EXAMPLES, "lobby/Lobby"),
    (EXAMPLES, "there/There"),
    (EXAMPLES, "online/Online"),
];

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through these.
pub fn environment(name: &str) -> String {
    std::env::var(name).expect(MISSING)
}

/// The program of a document whose first line, a comment, names it.
pub fn program<'a>(document: &'a str, name: &str) -> &'a str {
    let (before, _) = document.split_once(&format!(" {name}\n")).expect("a program in the document");
    let begin = before.rfind("```").unwrap();
    let body = document[begin..].split_once('\n').unwrap().1;
    body.split_once("\n```").unwrap().0
}

/// A program that runs until this is dropped.
pub struct Running(Child);

impl Running {
    pub fn goes_on(&mut self) {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none(), "the program has ended: {ended:?}");
    }

    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect(MISSING))
    }

    pub fn output(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().expect("an output that is piped")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program prints that ends by itself; it has to succeed.
pub async fn printed(mut command: Command) -> String {
    command.stdin(Stdio::null());
    let done = tokio::task::spawn_blocking(move || (command.output().expect(MISSING), command));
    let (done, command) = done.await.unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// A file in the folder of the client libraries.
pub fn written(path: &str, text: &str) -> PathBuf {
    let file = Path::new(&environment("WARREN_TEST_PROGRAMS")).join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

pub fn in_python(document: &str, name: &str) -> Command {
    let mut command = Command::new(environment("WARREN_TEST_PYTHON"));
    command.arg(written(name, program(document, name)));
    command
}

pub fn in_node(document: &str, name: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(written(name, program(document, name)));
    command
}

/// All programs of Spring, packaged once; `class` is the one to run.
pub async fn in_spring(class: &str) -> Command {
    static JAR: OnceCell<PathBuf> = OnceCell::const_new();
    let package = || async {
        let pom = written("spring/pom.xml", POM);
        for (document, path) in SPRING {
            let name = format!("{}.java", path.split_once('/').unwrap().1);
            written(&format!("spring/src/main/java/{path}.java"), program(document, &name));
        }
        let mut building = Command::new("mvn");
        building.args(["-B", "-q", "package", "-f"]).arg(&pom);
        let built = tokio::task::spawn_blocking(move || building.output().expect(MISSING)).await.unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stdout));
        pom.with_file_name("target").join("programs.jar")
    };
    let mut command = Command::new("java");
    command.args(["-Xmx128m", "-cp"]).arg(JAR.get_or_init(package).await);
    command.arg(format!("-Dloader.main={class}"));
    command.arg("org.springframework.boot.loader.launch.PropertiesLauncher");
    command
}

/// What Spring's programs are told about the broker.
pub fn spring_settings(url: &str) -> [String; 3] {
    [
        format!("--spring.rabbitmq.addresses={url}"),
        "--spring.main.banner-mode=off".into(),
        "--spring.main.web-application-type=none".into(),
    ]
}
